"""The killable worker: the same answers, and a parent that outlives whatever the worker does."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

from tests.image_files import encode, exif, noise_picture, smooth_pixels
from vision_encoder.decode_worker import DecodeWorker
from vision_encoder.image_input import ImageError, ImageLimits, pixel_key, read_image

GOOD = encode(noise_picture(), "PNG")


@pytest.fixture(scope="module")
def worker():
    with DecodeWorker(timeout_s=60) as shared:
        yield shared


def refusal(worker: DecodeWorker, image, **options) -> ImageError:
    with pytest.raises(ImageError) as caught:
        worker.read_image(image, **options)
    return caught.value


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # where nobody reaps orphans
    except FileNotFoundError:
        return False


def test_it_answers_as_read_image_does(worker, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(encode(noise_picture(), "JPEG", exif=exif(Orientation=5)))
    for image in (path, GOOD, encode(noise_picture((1, 7)), "WEBP"), noise_picture(), smooth_pixels()):
        assert pixel_key(worker.read_image(image)) == pixel_key(read_image(image))
    deep = encode(noise_picture().convert("L").convert("I;16"), "TIFF")  # which takes numpy
    assert pixel_key(worker.read_image(deep)) == pixel_key(read_image(deep))


@pytest.mark.parametrize("image", [b"", b"%PDF-1", GOOD[:99], "http://x/", "no such file", [1]])
def test_it_refuses_as_read_image_does_and_goes_on(worker, image):
    worker.read_image(GOOD)
    pid = worker.pid
    error = refusal(worker, image)
    with pytest.raises(ImageError) as caught:
        read_image(image)
    assert (error.code, str(error)) == (caught.value.code, str(caught.value))
    assert pixel_key(worker.read_image(GOOD)) == pixel_key(noise_picture())
    assert worker.pid == pid


def test_it_fetches_with_the_callers_hook(worker):
    assert pixel_key(worker.read_image("http://x/", fetch=lambda url: GOOD)) == pixel_key(noise_picture())


def test_its_limits_are_its_own():
    with DecodeWorker(limits=ImageLimits(max_pixels=10), timeout_s=60) as strict:
        assert refusal(strict, GOOD).code == "image_too_large"
        assert refusal(strict, noise_picture()).code == "image_too_large"


def test_it_imports_neither_torch_nor_numpy():
    script = "import sys, vision_encoder.decode_worker; print({'torch', 'numpy', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_takes_too_long_is_killed_and_the_next_image_is_read():
    with DecodeWorker(timeout_s=60) as worker:
        worker.read_image(GOOD)
        first = worker.pid
        os.kill(first, signal.SIGSTOP)  # it hangs
        worker.timeout_s = 0.2
        error = refusal(worker, GOOD)
        assert error.code == "image_too_large"
        assert "not decoded within 0.2 s; make it smaller" in str(error)
        assert not is_alive(first)
        worker.timeout_s = 60
        assert pixel_key(worker.read_image(GOOD)) == pixel_key(noise_picture())


def test_a_large_request_to_a_worker_that_hangs_is_given_up():
    with DecodeWorker(timeout_s=60) as worker:
        worker.read_image(GOOD)
        os.kill(worker.pid, signal.SIGSTOP)
        worker.timeout_s = 0.2
        assert refusal(worker, GOOD + bytes(2**20)).code == "image_too_large"  # more than a pipe holds


def test_a_worker_that_dies_at_its_work_costs_one_image():
    with DecodeWorker(timeout_s=60) as worker:
        worker.read_image(GOOD)
        os.kill(worker.pid, signal.SIGSTOP)
        threading.Timer(0.2, os.kill, (worker.pid, signal.SIGKILL)).start()
        error = refusal(worker, GOOD)
        assert error.code == "image_corrupt"
        assert "ended its process: it is damaged or needs too much memory; save it again" in str(error)
        assert pixel_key(worker.read_image(GOOD)) == pixel_key(noise_picture())


def test_a_worker_that_died_idle_costs_nothing():
    with DecodeWorker(timeout_s=60) as worker:
        worker.read_image(GOOD)
        os.kill(worker.pid, signal.SIGKILL)
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        assert pixel_key(worker.read_image(GOOD)) == pixel_key(noise_picture())


def test_memory_is_bounded_and_the_worker_survives():
    with DecodeWorker(timeout_s=60, max_memory_bytes=64 * 2**20) as worker:
        error = refusal(worker, encode(Image.new("RGB", (3000, 3000)), "PNG"))
        assert (error.code, "needs too much memory" in str(error)) == ("image_too_large", True)
        pid = worker.pid
        assert pixel_key(worker.read_image(GOOD)) == pixel_key(noise_picture())
        assert worker.pid == pid


def test_the_child_is_limited_and_knows_little(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    with DecodeWorker(timeout_s=60) as worker:
        worker.read_image(GOOD)
        with open(f"/proc/{worker.pid}/limits") as file:
            limits = {line[:26].strip(): line[26:].split()[0] for line in file}
        with open(f"/proc/{worker.pid}/environ") as file:
            assert "hunter2" not in file.read()
        assert limits["Max address space"] == str(2**30)
        assert (limits["Max file size"], limits["Max core file size"]) == ("0", "0")
        assert int(limits["Max cpu time"]) < 120
        assert os.readlink(f"/proc/{worker.pid}/fd/2") == os.devnull


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"hello\n",
        b"[1]\n",
        b'{"height": 1000000, "width": 1000000}\n',
        b'{"height": -1, "width": -1}\n',
        b'{"height": 2, "width": 2}\nshort',
        b'{"code": "oops", "message": "x"}\n',
        b"{" * 5000,
        b'{"height": Infinity, "width": 1}\n',
        b"[" * 2000 + b"\n",
    ],
)
def test_a_worker_that_was_taken_over_is_not_believed(reply, tmp_path, monkeypatch):
    impostor = tmp_path / "python"
    impostor.write_bytes(b"#!/bin/sh\nhead -c 8 > /dev/null\nprintf '%b' '" + reply.replace(b"\n", b"\\n") + b"'\n")
    impostor.chmod(impostor.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(impostor))
    with DecodeWorker(timeout_s=60) as worker:
        assert refusal(worker, GOOD).code == "image_corrupt"


def test_threads_that_share_a_worker_get_their_own_pictures(worker):
    contents = [encode(noise_picture((5, 5 + seed), seed), "PNG") for seed in range(12)]
    found: dict[int, str] = {}

    def read(index: int) -> None:
        found[index] = pixel_key(worker.read_image(contents[index]))

    threads = [threading.Thread(target=read, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {index: pixel_key(read_image(content)) for index, content in enumerate(contents)}


def test_corrupt_images_leave_no_process_and_no_file_behind(worker):
    worker.read_image(GOOD)
    open_files, pid = sorted(os.listdir("/proc/self/fd")), worker.pid
    for cut in range(200):
        refusal(worker, GOOD[: 1 + cut])
    assert pixel_key(worker.read_image(GOOD)) == pixel_key(noise_picture())
    assert (worker.pid, sorted(os.listdir("/proc/self/fd"))) == (pid, open_files)
    assert len(os.listdir(f"/proc/{pid}/fd")) <= 5


def test_closing_ends_the_child_and_leaves_nothing_open():
    open_files = sorted(os.listdir("/proc/self/fd"))
    with DecodeWorker(timeout_s=60) as worker:
        worker.read_image(GOOD)
        pid = worker.pid
    assert worker.pid is None
    assert not is_alive(pid)
    assert sorted(os.listdir("/proc/self/fd")) == open_files
    worker.close()


def test_the_child_ends_when_its_parent_does():
    script = (
        "import os, sys; from vision_encoder.decode_worker import DecodeWorker\n"
        "worker = DecodeWorker(timeout_s=60); worker.read_image(sys.stdin.buffer.read())\n"
        "print(worker.pid, flush=True); os._exit(1)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=GOOD, capture_output=True, check=False)
    deadline = time.monotonic() + 30
    while is_alive(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(int(done.stdout))
