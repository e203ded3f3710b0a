"""The public API as callers use it: every kind of image, every form of message, every promise of a reply."""

import base64
import json
import time

import numpy as np
import pytest
import torch
from PIL import Image

import vlm as package
from tests.conftest import random_model
from tests.conversations import MIXED, SMALL, WIDE, changed_logits, refusal, user
from tests.image_files import encode, exif, noise_picture, smooth_pixels
from vlm import VLM, GenerationConfig, Tokenizer, VLMError, preset
from vlm.pipeline import CAPTION_REQUEST
from vlm.prompt import encode_completion

SHORT = GenerationConfig(max_new_tokens=5)
PICTURE = Image.fromarray(smooth_pixels((30, 40)))
CONTENT = encode(PICTURE, "PNG")
DATA_URL = "data:image/png;base64," + base64.b64encode(CONTENT).decode()


@pytest.fixture(scope="module")
def picture_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.jpg"
    path.write_bytes(CONTENT)
    return path


# Images


@pytest.fixture(params=["str", "Path", "bytes", "PIL", "array", "tensor", "data URL", "EncodedImage"])
def image(request, picture_path, tiny):
    pixels = np.asarray(PICTURE)
    ways = {
        "str": str(picture_path),
        "Path": picture_path,
        "bytes": CONTENT,
        "PIL": PICTURE,
        "array": pixels,
        "tensor": torch.tensor(pixels).permute(2, 0, 1),
        "data URL": DATA_URL,
        "EncodedImage": tiny.encode_image(PICTURE),
    }
    return ways[request.param]


def test_every_kind_of_image_gives_the_same_reply(tiny, image):
    given, usual = [*one_image(image)], one_image(PICTURE)
    expected = tiny.chat(usual, config=SHORT)
    assert tiny.chat(given, config=SHORT).token_ids == expected.token_ids
    assert "".join(tiny.stream(given, config=SHORT)) == expected.text
    assert torch.equal(tiny.logits(given), tiny.logits(usual))
    assert tiny.score(given, ["ab"]) == tiny.score(usual, ["ab"])
    assert tiny.prompt_ids(given) == tiny.prompt_ids(usual)
    assert torch.equal(tiny.encode_image(image).tokens, tiny.encode_image(PICTURE).tokens)
    answer = tiny.chat(user(PICTURE, "?"), config=SHORT).token_ids
    assert tiny.answer(image, "?", config=SHORT).token_ids == answer
    assert tiny.answer_many([(image, "?")], config=SHORT)[0].token_ids == answer
    caption = tiny.chat(user(PICTURE, CAPTION_REQUEST), config=SHORT).token_ids
    assert tiny.caption(image, config=SHORT).token_ids == caption
    if not isinstance(image, str):
        completion = tiny.complete([CONTENT, "?"], config=SHORT).token_ids
        assert tiny.complete([image, "?"], config=SHORT).token_ids == completion


def test_a_turned_photograph_is_read_upright(tiny):
    upright = encode(PICTURE, "PNG")
    turned = encode(PICTURE.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif(Orientation=6))
    assert tiny.encode_image(turned) is tiny.encode_image(upright)


@pytest.mark.parametrize(
    "bad",
    [
        *(5, 1.5, object(), [1], {"a": 1}, b"", b"nonsense", CONTENT[:200]),
        *("no/such/file.png", "", ".", "data:,", "data:image/png;base64,!", "ftp://x/y.png"),
        *("http://example.com/a.png", "https://example.com/a.png"),
        *(np.zeros((3, 30, 40), np.uint8), np.zeros((30, 40, 3), np.float32), np.zeros((30, 40), np.uint8)),
        *(torch.zeros(30, 40, 3, dtype=torch.uint8), torch.zeros(3, 30, 40), np.zeros((0, 40, 3), np.uint8)),
    ],
    ids=lambda bad: f"{bad!r:.20}" if isinstance(bad, str | bytes) else type(bad).__name__,
)
def test_what_is_no_image_is_refused_at_every_entry(tiny, bad):
    before = len(tiny.images.cache)
    calls = [
        lambda: tiny.caption(bad),
        lambda: tiny.answer_many([(SMALL, "x"), (bad, "?")]),
        lambda: tiny.chat([*user(SMALL), *one_image(bad)]),
        lambda: tiny.stream(one_image(bad)),
        lambda: tiny.encode_image(bad),
        lambda: tiny.score(one_image(bad), ["a"]),
        lambda: tiny.logits(one_image(bad)),
        lambda: tiny.logits_many([user("a"), one_image(bad)]),
    ]
    errors = [refusal(call) for call in calls]
    assert len({error.code for error in errors}) == 1
    assert errors[0].code in ("invalid_request", "image_unsupported", "image_empty", "image_truncated")
    replies = tiny.chat_many([one_image(bad), user("a")], config=SHORT, return_errors=True)
    assert replies[0].code == errors[0].code
    assert not isinstance(replies[1], VLMError)
    assert len(tiny.images.cache) <= before + 1


def one_image(image: object) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": image}]}]


# Messages


def test_every_form_of_the_same_messages_is_the_same_prompt(tiny):
    part = {"type": "text", "text": "hi"}
    forms = [
        [{"role": "user", "content": "hi"}],
        ({"role": "user", "content": [part]},),
        [{"role": "user", "content": (part,)}],
        [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}],
        [{"role": "user", "content": "hi", "name": None}],
    ]
    assert len({tuple(tiny.prompt_ids(form)) for form in forms}) == 1
    urls = [{"url": DATA_URL}, {"url": DATA_URL, "detail": "high"}]
    images = [{"type": "image", "image": DATA_URL}, *({"type": "image_url", "image_url": url} for url in urls)]
    replies = [tiny.chat([{"role": "user", "content": [form, part]}], config=SHORT).token_ids for form in images]
    assert replies == [tiny.answer(PICTURE, "hi", config=SHORT).token_ids] * 3


def test_prompt_ids_are_metas_and_what_the_decoder_is_fed(tiny):
    def header(role: str) -> list[int]:
        return [262, *role.encode(), 263, *b"\n\n"]

    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "image", "image": SMALL}, {"type": "text", "text": "u"}]},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "é"},
    ]
    expected = [256, *header("system"), *b"s", 265, *header("user"), 512, *b"u", 265]
    expected += [*header("assistant"), *b"a", 265, *header("user"), *"é".encode(), 265, *header("assistant")]
    fed = []
    hook = tiny.model.decoder.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].tolist()))
    reply = tiny.chat(messages, config=SHORT)
    tiny.logits(messages)
    hook.remove()
    assert tiny.prompt_ids(messages) == fed[0][0] == fed[-1][0] == expected
    assert len(reply.token_ids) <= 5
    begun = [*messages, {"role": "assistant", "content": "so"}]
    assert tiny.prompt_ids(begun, continue_final=True) == [*expected, *b"so"]
    assert tiny.prompt_ids(begun) == [*expected, *b"so", 265, *header("assistant")]


@pytest.mark.parametrize("parts", [["The"], ["The ", SMALL], [SMALL], [SMALL, "x", WIDE]])
def test_a_turn_that_goes_on_goes_on_as_the_reply_did(tiny, parts):
    """An image may stand in the assistant's turn; what follows sees it."""
    begun = [*MIXED[1], {"role": "assistant", "content": user(*parts)[0]["content"]}]
    with changed_logits(tiny, lambda logits: logits - 1e4 * (torch.arange(512) >= 128)):
        whole = tiny.chat(begun, config=GenerationConfig(max_new_tokens=6), continue_final=True)
        first = tiny.chat(begun, config=GenerationConfig(max_new_tokens=2), continue_final=True)
        further = [*MIXED[1], {"role": "assistant", "content": user(*parts, first.text)[0]["content"]}]
        rest = tiny.chat(further, config=GenerationConfig(max_new_tokens=4), continue_final=True)
        streamed = "".join(tiny.stream(begun, config=GenerationConfig(max_new_tokens=6), continue_final=True))
    assert whole.token_ids == first.token_ids + rest.token_ids
    assert streamed == whole.text == first.text + rest.text


def test_what_goes_on_sees_the_image_of_its_own_turn(tiny):
    begun = [[*MIXED[1], {**user("so ", image)[0], "role": "assistant"}] for image in (SMALL, WIDE)]
    first, second = (tiny.logits(messages, continue_final=True) for messages in begun)
    assert torch.equal(first[:-1], second[:-1])
    assert not torch.allclose(first[-1], second[-1])


def test_going_on_needs_an_assistants_turn(tiny):
    for call in (tiny.chat, tiny.stream, tiny.prompt_ids, tiny.logits):
        assert refusal(call, user("x"), continue_final=True).code == "invalid_request"
    assert refusal(tiny.chat_many, [user("x")], continue_final=True).code == "invalid_request"


@pytest.mark.parametrize("spelling", ["<|image|>", "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"])
def test_what_a_text_spells_is_text(tiny, spelling):
    """P2: markers are as many as images, and each image stays bound to its own."""
    for messages in (
        user(spelling, SMALL, "?"),
        user(SMALL, spelling),
        user(f"a{spelling}b", SMALL, f"c{spelling}", WIDE),
    ):
        ids = tiny.prompt_ids(messages)
        num_images = sum(part["type"] == "image" for part in messages[0]["content"])
        assert ids.count(512) == num_images
        assert ids.count(267) == 0
        assert ids.count(265) == 1
    # The same numbers as a text of which the bytes are spelt apart.
    apart = [{"type": "text", "text": letter} for letter in spelling]
    messages = [{"role": "user", "content": [*apart, {"type": "image", "image": SMALL}]}]
    assert torch.equal(tiny.logits(messages), tiny.logits(user(spelling, SMALL)))
    assert tiny.complete([spelling], config=SHORT).token_ids == tiny.complete([*spelling], config=SHORT).token_ids


def test_text_before_the_first_image_does_not_see_it(tiny):
    """N3, bit by bit."""
    first, second = (tiny.logits(user("before", image, "after")) for image in (SMALL, noise_picture((9, 9), 77)))
    marker = tiny.prompt_ids(user("before", SMALL, "after")).index(512)
    assert torch.equal(first[:marker], second[:marker])
    assert not torch.allclose(first[marker:], second[marker:])
    without = tiny.logits(user("before"))
    torch.testing.assert_close(first[:marker], without[:marker], atol=1e-5, rtol=1e-5)


def turns(*contents: object) -> list[list[dict]]:
    return [[{"role": "user", "content": content}] for content in contents]


@pytest.mark.parametrize(
    "messages",
    [
        *(None, 5, "hi", b"hi", [], {}, user("x")[0], ["hi"], [None], [[]], [{}], [{"role": "user"}]),
        *([{"role": role, "content": "x"}] for role in ("tool", "ipython", "User", "", None, 1, [])),
        [{"role": "user<|end_header_id|>", "content": "x"}],
        *turns(None, 5, [], [None], ["x"], [{}], {"type": "text"}, b"x"),
        *turns([{"type": "text"}], [{"type": "text", "text": 5}], [{"type": "audio"}]),
        *turns([{"type": "image"}], [{"type": "image", "image": None}], [{"type": "image_url", "image_url": "data:,"}]),
        *turns(*([{"type": "image_url", "image_url": url}] for url in (None, {}, {"url": None}))),
        *turns(
            *([{"type": "image_url", "image_url": {"url": path}}] for path in ("/etc/passwd", "file:///etc/passwd"))
        ),
        [{"role": "user", "content": "x", "name": "n"}],
        [{"role": "assistant", "content": "x", "tool_calls": [1]}],
    ],
    ids=lambda messages: f"{messages!r:.60}",
)
def test_what_is_no_conversation_is_refused_at_every_entry(tiny, messages):
    """P3."""
    for call in (tiny.chat, tiny.stream, tiny.prompt_ids, tiny.logits, lambda given: tiny.score(given, ["x"])):
        assert refusal(call, messages).code == "invalid_request"
    replies = tiny.chat_many([user("a"), messages], config=SHORT, return_errors=True)
    assert replies[0].finish_reason in ("length", "stop")
    assert replies[1].code == "invalid_request"
    if messages != []:
        assert refusal(tiny.chat_many, messages).code == "invalid_request"


# Replies


def test_a_reply_tells_what_was_promised(tiny):
    started = time.perf_counter()
    reply = tiny.chat(user(noise_picture(seed=123), "?"), config=GenerationConfig(max_new_tokens=8))
    elapsed = time.perf_counter() - started
    assert str(reply) == reply.text == tiny.tokenizer.decode(reply.token_ids)
    assert 0 < reply.confidence <= 1
    assert isinstance(reply.token_ids, list)
    times = reply.timings
    assert min(times.encode_s, times.prefill_s, times.decode_s) > 0
    assert times.encode_s + times.prefill_s + times.decode_s <= elapsed
    assert times.tokens_per_s == pytest.approx(len(reply.token_ids) / times.decode_s)


def test_many_keep_their_order_and_none_is_a_list(tiny):
    pairs = [(image, question) for question in "abc" for image in (SMALL, WIDE)]
    expected = [tiny.answer(*pair, config=SHORT).token_ids for pair in pairs]
    assert [reply.token_ids for reply in tiny.answer_many(pairs, config=SHORT)] == expected
    assert [reply.token_ids for reply in tiny.answer_many(iter(map(list, pairs)), config=SHORT)] == expected
    conversations = (user(*pair) for pair in pairs)
    assert [reply.token_ids for reply in tiny.chat_many(conversations, config=SHORT)] == expected
    same = user(SMALL, "a")
    assert [reply.token_ids for reply in tiny.chat_many([same] * 19, config=SHORT)] == expected[:1] * 19
    assert tiny.answer_many([]) == tiny.chat_many([]) == tiny.logits_many([]) == tiny.score(user("x"), []) == []


def test_messages_are_not_changed(tiny):
    messages = [{"role": "user", "content": [{"type": "image", "image": SMALL}, {"type": "text", "text": "x"}]}]
    before = json.dumps(messages, default=lambda _: "image")
    for call in (tiny.logits, tiny.prompt_ids, lambda given: list(tiny.stream(given, config=SHORT))):
        call(messages)
    assert json.dumps(messages, default=lambda _: "image") == before


@pytest.mark.parametrize("pairs", [None, 5, "ab", {"a": "b"}, [5], ["ab"], [(SMALL,)], [(SMALL, "a", "b")], [None]])
def test_what_is_no_pair_is_refused(tiny, pairs):
    assert refusal(tiny.answer_many, pairs).code == "invalid_request"


@pytest.mark.parametrize("question", [None, 5, b"x", ["x"]])
def test_a_question_is_a_text(tiny, question):
    assert refusal(tiny.answer, SMALL, question).code == "invalid_request"
    assert refusal(tiny.answer_many, [(SMALL, question)]).code == "invalid_request"


@pytest.mark.parametrize("batch_size", [0, -1, 1.0, "8", None, True])
def test_a_batch_size_is_at_least_1(tiny, batch_size):
    assert "batch_size" in refusal(tiny.chat_many, [user("x")], batch_size=batch_size).message


@pytest.mark.parametrize("conversations", [None, 5, "ab", user("x")[0]])
def test_conversations_are_a_list(tiny, conversations):
    assert "conversations" in refusal(tiny.chat_many, conversations).message
    assert "conversations" in refusal(tiny.logits_many, conversations).message


@pytest.mark.parametrize("config", [{"max_new_tokens": 5}, 5, "greedy", GenerationConfig])
def test_a_config_is_a_generation_config(tiny, config):
    calls = [lambda: tiny.chat(user("x"), config=config), lambda: tiny.stream(user("x"), config=config)]
    calls += [lambda: tiny.chat_many([], config=config), lambda: tiny.complete("x", config=config)]
    for call in calls:
        assert "GenerationConfig" in refusal(call).message


def test_the_first_error_is_raised_and_errors_stand_in_their_places(tiny):
    conversations = [user("a"), user("b" * 600), user(b"no image"), user("c"), user(SMALL, "d")]
    assert refusal(tiny.chat_many, conversations).code == "context_length_exceeded"
    for batch_size in (1, 2, 8):
        replies = tiny.chat_many(conversations, config=SHORT, batch_size=batch_size, return_errors=True)
        codes = [reply.code if isinstance(reply, VLMError) else None for reply in replies]
        assert codes == [None, "context_length_exceeded", "image_unsupported", None, None]
        for place in (0, 3, 4):
            assert replies[place].token_ids == tiny.chat(conversations[place], config=SHORT).token_ids
    assert len(tiny.chat_many([user(b"bad")] * 3, return_errors=True)) == 3


# Without a chat format


@pytest.mark.parametrize("parts", ["The", ["The"], ["a ", SMALL, " b", WIDE], [SMALL], ("x", SMALL)])
def test_completion_goes_on_with_the_parts_alone(tiny, parts):
    fed = []
    hook = tiny.model.decoder.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].tolist()))
    reply = tiny.complete(parts, config=SHORT)
    hook.remove()
    assert fed[0][0] == encode_completion(tiny.tokenizer, parts).ids
    assert fed[0][0][0] == 256
    assert 262 not in fed[0][0]
    assert str(reply) == tiny.tokenizer.decode(reply.token_ids)


@pytest.mark.parametrize("parts", [None, 5, [], [None], SMALL, [5], b"x", {"a": 1}])
def test_completion_of_nothing_is_refused(tiny, parts):
    assert refusal(tiny.complete, parts).code == "invalid_request"


# Logits


def test_logits_are_ordinary_tensors_in_float32(tiny_model):
    half = VLM(random_model(preset("tiny")).to(torch.bfloat16), Tokenizer.bytes_only())
    for model in (half, VLM(tiny_model, Tokenizer.bytes_only())):
        for logits in (model.logits(user("x", SMALL)), model.logits_many([user("x"), user("abc")])[0]):
            assert logits.dtype == torch.float32
            assert not logits.is_inference()
            logits -= 1


def test_public_names_are_there():
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        getattr(package, "Nothing")  # noqa: B009
