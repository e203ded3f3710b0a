"""Prompts are what Meta, lmms-eval and VLMEvalKit really send: their published words, images and lengths."""

import pytest

from eval import tasks
from eval.prompts import DIRECT, IMAGE_MARKER
from eval.records import ImageRef, Sample
from vlm.errors import VLMError

# As models/llama3_2/eval_details.md of meta-llama/llama-models has them, in its own notation: `\n` is two characters,
# quotes may be escaped, `&lt;` is a bracket. {numbered} is ours, where Meta does not say how options are listed.
PUBLISHED_BY_META = {
    ("chartqa", "meta-11b", 512): (
        r"""&lt;|image|>You are provided a chart image and will be asked a question. You have to think through your answer and provide a step-by-step solution. Once you have the solution, write the final answer in at most a few words at the end with the phrase "FINAL ANSWER:". The question is: {question}&lt;cot_start>Let's think step by step."""  # noqa: E501
    ),
    ("chartqa", "meta-90b", 512): (
        r"""&lt;|image|>You are provided a chart image and will be asked a question. Follow these steps carefully:\n Step 1: Analyze the question to understand what specific data or information is being asked for. Focus on whether the question is asking for a specific number or category from the chart image.\n Step 2: Identify any numbers, categories, or groups mentioned in the question and take note of them. Focus on detecting and matching them directly to the image. \nStep 3: Study the image carefully and find the relevant data corresponding to the categories or numbers mentioned. Avoid unnecessary assumptions or calculations; simply read the correct data from the image.\n Step 4: Develop a clear plan to solve the question by locating the right data. Focus only on the specific category or group that matches the question. \nStep 5: Use step-by-step reasoning to ensure you are referencing the correct numbers or data points from the image, avoiding unnecessary extra steps or interpretations.\n Step 6: Provide the final answer, starting with "FINAL ANSWER:" and using as few words as possible, simply stating the number or data point requested. \n\n The question is: {question}&lt;cot_start>Let\'s think step by step."""  # noqa: E501
    ),
    ("ai2d", "meta-11b", 400): (
        r"""&lt;|image|>Look at the scientific diagram carefully and answer the following question: {question}{numbered}\n Think step by step and finally respond to the question with only the correct option number as \"FINAL ANSWER\". Let's think step by step."""  # noqa: E501
    ),
    ("ai2d", "meta-90b", 400): (
        r"""&lt;|image|>Look at the scientific diagram carefully and answer the following question: {question}{numbered}\n Respond only with the correct option digit."""  # noqa: E501
    ),
    ("docvqa", "meta", 512): (
        r"""&lt;|image|> Read the text in the image carefully and answer the question with the text as seen exactly in the image. For yes/no questions, just respond Yes or No. If the answer is numeric, just respond with the number and nothing else. If the answer has multiple words, just respond with the words and absolutely nothing else. Never respond in a sentence or a phrase.\n Question: {question}"""  # noqa: E501
    ),
    ("vqav2", "meta", 25): (
        r"""&lt;|image|> Look at the image carefully and answer this visual question. For yes/no questions, just respond Yes or No. If the answer is numeric, just respond with the number and nothing else. If the answer has multiple words, just respond with the words and absolutely nothing else. Never respond in a sentence or a phrase.\n Respond with as few words as possible.\n Question: {question}"""  # noqa: E501
    ),
    ("mmmu", "meta", 2048): (
        r"""&lt;|image|>Look at the image carefully and solve the following question step-by-step. {question} Options: {options} Indicate the correct answer at the end."""  # noqa: E501
    ),
    ("mmmu_pro", "meta", 2048): r"""&lt;|image|>{question} Options: {options}""",
    ("mathvista", "meta", 2048): r"""&lt;|image|>{question}""",
}
META_VISION = r"""&lt;|image|>Your job is to extract the question from the image the user attached, reason about it, and then answer the question. Follow these steps: \n1. Always start by Clearly stating the question shown in the image, and also state all of the options. \n2. Then, Carefully review the information beyond the question shown in the image and analyze it without making any assumptions. \n3. Next, use your understanding of the image to answer the question you listed out in the first step. Use a step-by-step process \n4. Finally, write the answer in the following format where X is exactly one of the option letters: The best answer is X.\nAlways follow the steps above, printing out everything. Let's think step by step. Your response must be among the given options."""  # noqa: E501


def image(name: str) -> ImageRef:
    return ImageRef(id=name, data=b"x")


def sample(question: str = "How {many}?", options: tuple = ("one", "", "two {x}"), **more) -> Sample:
    return Sample(id="s", task="t", images=(image("i"),), question=question, targets=("A",), options=options, **more)


def published(text: str, **values: str) -> str:
    """Return what Meta's notation stands for."""
    text = text.replace("&lt;", "<").replace("\\n", "\n").replace('\\"', '"').replace("\\'", "'")
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def as_meta_writes(prompt) -> str:
    """Return a prompt with the marks that Meta puts into its own."""
    (message,) = prompt.messages
    assert message["role"] == "user"
    shown = "".join("<|image|>" if part["type"] == "image" else part["text"] for part in message["content"])
    return shown + (f"<cot_start>{prompt.prefill}" if prompt.prefill else "")


@pytest.mark.parametrize(("task", "preset", "length"), PUBLISHED_BY_META)
def test_metas_prompts_are_word_for_word(task, preset, length):
    asked = sample(options=("one", "", "two {x}"))
    values = {"question": "How {many}?", "options": "A. one\nC. two {x}", "numbered": "\n1. one\n3. two {x}"}
    prompt = tasks.find(task).prompt(asked, preset)
    assert as_meta_writes(prompt) == published(PUBLISHED_BY_META[task, preset, length], **values)
    assert prompt.max_new_tokens == length
    assert prompt.name == preset


def test_metas_prompt_for_questions_inside_pictures():
    prompt = tasks.find("mmmu_pro").prompt(sample(question=""), "meta")
    assert as_meta_writes(prompt) == published(META_VISION)


@pytest.mark.parametrize("size", ["11b", "90b"])
def test_the_reply_begins_with_metas_words_or_the_question_ends_with_them(size):
    chartqa = tasks.find("chartqa")
    prefilled, plain = (chartqa.prompt(sample(), f"meta-{size}{ending}") for ending in ("", "-newline"))
    assert prefilled.prefill == "Let's think step by step."
    assert plain.prefill == ""
    assert as_meta_writes(plain) == as_meta_writes(prefilled).replace("<cot_start>", "\n")
    assert prefilled.text().endswith("\n\nassistant:\nLet's think step by step.")


PHRASE = "How {many}?\nAnswer the question using a single word or phrase."
LETTER = "How {many}?\nA. one\nC. two {x}\nAnswer with the option's letter from the given choices directly."
VLMEVALKIT = (
    "Question: How {many}?\nOptions:\nA. one\nC. two {x}\nPlease select the correct answer from the options above. \n"
)
ASKED = {
    ("chartqa", "lmms-eval"): (16, "How {many}?\nAnswer the question with a single word."),
    ("chartqa", "vlmevalkit"): (512, PHRASE),
    ("chartqa", "direct"): (64, "How {many}?"),
    ("ai2d", "lmms-eval"): (16, LETTER),
    ("ai2d", "vlmevalkit"): (128, VLMEVALKIT),
    ("ai2d", "direct"): (64, "How {many}?\nA. one\nC. two {x}"),
    ("docvqa", "lmms-eval"): (32, PHRASE),
    ("infovqa", "lmms-eval"): (32, PHRASE),
    ("textvqa", "lmms-eval"): (1024, PHRASE),
    ("vqav2", "lmms-eval"): (16, PHRASE),
    ("mmmu", "lmms-eval"): (128, LETTER.replace("\nAnswer", "\n\nAnswer")),
    ("mmmu_pro", "lmms-eval"): (256, LETTER.replace("\nAnswer", "\n\nAnswer").replace("option's", "option")),
    ("mathvista", "lmms-eval"): (16384, LETTER),
}


@pytest.mark.parametrize(("task", "preset"), ASKED)
def test_other_presets_say_what_their_harness_says(task, preset):
    length, expected = ASKED[task, preset]
    prompt = tasks.find(task).prompt(sample(), preset)
    parts = prompt.messages[0]["content"]
    assert [part["type"] for part in parts] == ["image", "text"], "the image comes first"
    assert parts[1]["text"] == expected
    assert (prompt.max_new_tokens, prompt.prefill) == (length, "")


def test_lmms_eval_makes_textvqas_letters_small():
    prompt = tasks.find("textvqa").prompt(sample(question="What does BP say?", options=()), "lmms-eval")
    assert prompt.messages[0]["content"][1]["text"].startswith("What does bp say?\n")


def test_open_questions_of_mmmu_are_asked_for_a_phrase():
    open_question = sample(question="Why?", options=())
    mmmu = tasks.find("mmmu")
    assert mmmu.prompt(open_question, "lmms-eval").text() == (
        "user:\n<image: i>Why?\n\nAnswer the question using a single word or phrase.\n\nassistant:\n"
    )
    assert "Question: Why?\n\n\nassistant" in mmmu.prompt(open_question, "vlmevalkit").text()
    assert "step-by-step. Why? Indicate the correct answer" in mmmu.prompt(open_question, "meta").text()
    assert mmmu.prompt(open_question, "direct").text() == "user:\n<image: i>Why?\n\nassistant:\n"


def test_a_question_inside_a_picture_is_asked_by_its_instruction_alone():
    prompt = tasks.find("mmmu_pro").prompt(sample(question=""), "lmms-eval")
    parts = prompt.messages[0]["content"]
    assert parts[1]["text"] == "Answer with the option letter from the given choices directly."


@pytest.mark.parametrize(
    ("fields", "options", "short", "long"),
    [
        ({"answer_type": "float", "precision": 1}, (), "with one decimal place.", "e.g., 1.2, 1.3, 1.4, at the end."),
        ({"answer_type": "float", "precision": 2}, (), "with two decimal places.", "e.g., 1.23, 1.34, 1.45, at"),
        ({"answer_type": "integer"}, (), "using a single integer number.", "requiring an integer answer"),
        ({"answer_type": "list"}, (), "using a Python list.", "[1.2, 1.3, 1.4], at the end."),
        ({"answer_type": "text"}, ("a", "b"), "option's letter from", "correct option letter, e.g., A, B, C, D"),
        ({"answer_type": "float", "precision": 3}, (), None, None),
    ],
)
def test_mathvista_hints_at_the_kind_of_answer(fields, options, short, long):
    asked = sample(question="How long?", options=options, fields=fields | {"unit": "cm"})
    task = tasks.find("mathvista")
    brief, last, first = (
        task.prompt(asked, name).messages[0]["content"][1]["text"]
        for name in ("lmms-eval", "lmms-eval-cot", "vlmevalkit")
    )
    assert brief.startswith("How long? (Unit: cm)")
    listed = "\nChoices:\n(A) a\n(B) b" if options else ""
    question = f"Question: How long? (Unit: cm){listed}"
    if short is None:
        assert (last, first) == (question, question)
        return
    assert short in brief
    assert last.startswith(f"{question}\nHint: Please answer the question ")
    assert first.startswith("Hint: Please answer the question ")
    assert first.endswith(f"\n{question}")
    assert long in last
    assert long in first


def test_a_question_that_brings_its_hint_gets_no_second():
    asked = sample(question="Hint: x\nQuestion: y", options=())
    assert tasks.find("mathvista").prompt(asked, "vlmevalkit").text() == (
        "user:\n<image: i>Hint: x\nQuestion: y\n\nassistant:\n"
    )


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Compare <image 1> and <image 2>.", "Compare |a| and |b|."),
        ("<image 2><image 1>?", "|b||a|?"),
        ("<image 1> or <image 1>, <image 3>", "|a| or |a|, |b|"),
        ("No marks", "|a||b|No marks"),
        ("Only <image 1>", "|b|Only |a|"),
        ("<image 1><image 2><image 3>", "|a||b|"),
    ],
)
def test_images_stand_where_vlmevalkit_has_the_text_refer_to_them(question, expected):
    asked = Sample(id="s", task="t", images=(image("a"), image("b")), question=question, targets=(), options=())
    prompt = tasks.find("mmmu").prompt(asked, "vlmevalkit")
    parts = prompt.messages[0]["content"]
    shown = "".join(part["text"] if part["type"] == "text" else f"|{part['image'].id}|" for part in parts)
    assert shown.replace("Question: ", "").removesuffix("\n") == expected
    assert "" not in [part.get("text") for part in parts]
    assert not IMAGE_MARKER.search(shown)


def test_other_presets_show_all_images_first():
    asked = Sample(id="s", task="t", images=(image("a"), image("b")), question="<image 1>?", targets=())
    for name in ("direct", "meta", "lmms-eval"):
        parts = tasks.find("mmmu").prompt(asked, name).messages[0]["content"]
        assert [part["type"] for part in parts] == ["image", "image", "text"]
        assert "<image 1>?" in parts[2]["text"]


def test_an_image_may_come_last_and_a_text_may_be_missing():
    from dataclasses import replace

    parts = replace(DIRECT, images="last")(sample()).messages[0]["content"]
    assert [part["type"] for part in parts] == ["text", "image"]
    parts = DIRECT(sample(question="")).messages[0]["content"]
    assert [part["type"] for part in parts] == ["image"]


@pytest.mark.parametrize(
    ("task", "wanted", "model", "preset"),
    [
        ("chartqa", None, "meta-llama/Llama-3.2-11B-Vision-Instruct", "direct"),
        ("chartqa", "meta", "meta-llama/Llama-3.2-11B-Vision-Instruct", "meta-11b"),
        ("ai2d", "meta", "/models/llama-90b", "meta-90b"),
        ("docvqa", "meta", None, "meta"),
        ("chartqa", "lmms-eval", None, "lmms-eval"),
    ],
)
def test_meta_goes_by_the_size_of_the_model(task, wanted, model, preset):
    assert tasks.find(task).preset(wanted, model) == preset
    assert tasks.find(task).prompt(sample(), wanted, model).name == preset


@pytest.mark.parametrize(
    ("task", "wanted", "model", "said"),
    [
        ("chartqa", "meta", None, r"None says neither 11B nor 90B; ask for 'meta-11b' or 'meta-90b'"),
        ("chartqa", "meta", "qwen-7b", r"'qwen-7b' says neither"),
        ("chartqa", "meta", "tiny-211b", r"neither"),
        ("chartqa", "mistral", None, r"prompt is 'mistral'; ChartQA offers direct, meta-11b, meta-90b"),
        ("textvqa", "meta", "11b", r"prompt is 'meta'; TextVQA offers direct, lmms-eval, vlmevalkit"),
    ],
)
def test_a_preset_that_a_task_does_not_have_is_refused(task, wanted, model, said):
    with pytest.raises(VLMError, match=said):
        tasks.find(task).prompt(sample(), wanted, model)
