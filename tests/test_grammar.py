"""Replies in the form of a JSON schema: valid by construction, whatever the model would rather write."""

import json
import subprocess
import sys

import pytest
import torch

from tests.conversations import MIXED, SMALL, changed_logits, refusal, user
from vlm import VLM, GenerationConfig, Tokenizer, VLMError
from vlm.generation.grammar import MAX_SCHEMA_CHARS, NUM_KEPT, Constraint, Grammars, restrict
from vlm.generation.sampling import Sampler
from vlm.pipeline import DEFAULT_MODEL
from vlm.serving.model_process.batcher import Batcher
from vlm.serving.model_process.job import Job
from vlm.serving.model_process.job_reader import JobReader
from vlm.serving.settings import EngineOptions
from vlm.tokenizer_files.llama3 import meta_special_ids

ANY_OBJECT = {"type": "object"}
BAR = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "value": {"type": "integer", "minimum": 10, "maximum": 99},
        "kind": {"enum": ["bar", "line"]},
    },
    "required": ["name", "value", "kind"],
    "additionalProperties": False,
}
BARS = {"type": "array", "items": BAR, "minItems": 1, "maxItems": 2}


def is_bar(found: object) -> bool:
    """An oracle of its own for BAR: no library's idea of a schema."""
    return (
        isinstance(found, dict)
        and set(found) == {"name", "value", "kind"}
        and isinstance(found["name"], str)
        and len(found["name"]) <= 5
        and type(found["value"]) is int
        and 10 <= found["value"] <= 99
        and found["kind"] in ("bar", "line")
    )


@pytest.mark.parametrize("temperature", [0, 1.5, 1e3])
@pytest.mark.parametrize("seed", range(3))
def test_a_random_model_writes_valid_json_of_the_schemas_form(tiny, temperature, seed):
    config = GenerationConfig(temperature=temperature, seed=seed, schema=BARS, max_new_tokens=200)
    for reply in tiny.chat_many(MIXED[seed : seed + 3], config=config):
        found = json.loads(reply.text)
        assert reply.finish_reason == "stop"
        assert 1 <= len(found) <= 2
        assert all(map(is_bar, found))
        assert reply.token_ids == list(reply.text.encode())


def test_any_object_is_a_schema_too(tiny):
    """What `{"type": "json_object"}` asks for. A model that likes letters would never come to the end of a text."""
    pull = torch.zeros(512).index_fill(0, torch.tensor([*b'"}'], dtype=torch.int64), 30.0)
    with changed_logits(tiny, lambda logits: logits + pull):
        reply = tiny.answer(SMALL, "?", schema=ANY_OBJECT)
    assert isinstance(json.loads(reply.text), dict)
    assert reply.finish_reason == "stop"


def test_a_reply_whose_length_runs_out_says_so(tiny):
    reply = tiny.answer(SMALL, "?", schema=BAR, config=GenerationConfig(max_new_tokens=7))
    assert (reply.finish_reason, len(reply.token_ids)) == ("length", 7)
    assert reply.text.startswith("{")


def test_spaces_do_not_go_on_for_ever(tiny):
    """A model that likes spaces best; without a bound on them it would write nothing else."""
    spaces = torch.zeros(512).index_fill(0, torch.tensor([*b" \n\t"], dtype=torch.int64), 60.0)
    with changed_logits(tiny, lambda logits: logits + spaces):
        reply = tiny.answer(SMALL, "?", schema=BAR, config=GenerationConfig(max_new_tokens=400))
    assert is_bar(json.loads(reply.text))
    with changed_logits(tiny, lambda logits: logits + spaces.roll(-1)):
        assert is_bar(json.loads(tiny.answer(SMALL, "?", schema=BAR).text))


def test_all_ways_to_write_the_json_that_are_usual_are_open(tiny):
    bar = {"name": '"é€\n', "value": 99, "kind": "line"}
    for text in ('{"name":"a","value":10,"kind":"bar"}', json.dumps(bar, ensure_ascii=False)):
        assert follows(tiny.tokenizer, text)
    for indent in (1, 2, 4, "\t"):
        assert follows(tiny.tokenizer, json.dumps([{"name": "", "value": 10, "kind": "bar"}] * 2, indent=indent), BARS)
    assert not follows(tiny.tokenizer, '{"name":"a","value":100,"kind":"bar"}')
    assert not follows(tiny.tokenizer, '{"name":"a","value":10,"kind":"pie"}')
    assert not follows(tiny.tokenizer, '{"name":"a"}')


def allowed(constraint: Constraint) -> set[int]:
    """Return the ids that may come next."""
    return {token_id for token_id, byte in enumerate(constraint.allowed()) if byte}


def follows(tokenizer: Tokenizer, text: str, schema: dict = BAR) -> bool:
    """Say whether the grammar lets a model write `text` and end there."""
    constraint = Grammars(tokenizer, tokenizer.vocab_size).begin(schema)
    for token_id in [*tokenizer.encode(text), tokenizer.eot_id]:
        if token_id not in allowed(constraint):
            return False
        constraint.advance(token_id)
    return True


@pytest.mark.parametrize("name", ["shipped", "bytes"])
def test_special_tokens_have_no_place_but_at_the_end(name):
    """The names of special tokens are text that a string may hold; their ids are not."""
    tokenizer = Tokenizer.from_folder(DEFAULT_MODEL) if name == "shipped" else Tokenizer.bytes_only()
    size = tokenizer.vocab_size + 3
    constraint = Grammars(tokenizer, size).begin({"type": "string"})
    special = {token_id for token_id in range(size) if tokenizer.is_special(token_id)}
    for token_id in tokenizer.encode('"<|eot_id|> <|image|>'):
        assert len(constraint.allowed()) == size
        assert token_id in allowed(constraint)
        assert not allowed(constraint) & special
        constraint.advance(token_id)
    (quote,) = tokenizer.encode('"')
    constraint.advance(quote)
    assert allowed(constraint) == set(tokenizer.stop_ids)


def test_tokens_of_several_bytes_are_known_by_all_their_bytes():
    """Merges across the edges of the JSON, as real vocabularies have them."""
    merges = [b'{"', b'":', b' "', b"na", b'"}']
    ranks = {token: rank for rank, token in enumerate([*(bytes([value]) for value in range(256)), *merges])}
    tokenizer = Tokenizer(ranks, meta_special_ids(len(ranks)))
    schema = {"type": "object", "properties": {"na": {"const": "x"}}, "required": ["na"], "additionalProperties": False}
    constraint = Grammars(tokenizer, tokenizer.vocab_size).begin(schema)
    written = []
    while not written or written[-1] not in tokenizer.stop_ids:
        # The longest token that is allowed.
        written.append(max(allowed(constraint), key=lambda each: (each < 261, each)))
        constraint.advance(written[-1])
    assert json.loads(tokenizer.decode(written[:-1])) == {"na": "x"}
    assert {256, 259, 260} <= set(written)


def test_the_same_grammar_holds_in_a_job(tiny):
    reader = JobReader(tiny, EngineOptions(), None)
    reader._picture = lambda image: image
    config = GenerationConfig(schema=BAR, max_new_tokens=100)
    batcher, ids = Batcher(tiny.model, tiny.tokenizer, 4), {}
    for key in range(3):
        batcher.add(reader._row(key, Job(messages=MIXED[key], config=config)))
    while not batcher.is_idle:
        ids |= {key: event.token_ids for key, event in batcher.step() if hasattr(event, "token_ids")}
    assert [ids[key] for key in range(3)] == [tiny.chat(each, config=config).token_ids for each in MIXED[:3]]


def test_confidence_is_of_the_model_not_of_what_the_grammar_left(tiny):
    """One token alone is allowed at the first step; the model had little taste for it."""
    reply = tiny.answer(SMALL, "?", schema={"const": 7}, config=GenerationConfig(max_new_tokens=1))
    logits = tiny.logits(user(SMALL, "?"))[-1]
    assert reply.text == "7"
    assert reply.confidence == pytest.approx(logits.softmax(-1)[ord("7")].item(), abs=1e-5)


# What is refused


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("object", "schema is of type str"),
        ([ANY_OBJECT], "schema is of type list"),
        (True, "schema is of type bool"),
        ({"const": {1, 2}}, "something that JSON cannot"),
        ({"const": float("nan")}, "something that JSON cannot"),
        ({"const": "x" * MAX_SCHEMA_CHARS}, f"expected at most {MAX_SCHEMA_CHARS}"),
    ],
)
def test_what_is_no_schema_is_refused_when_it_is_given(tiny, schema, words):
    with pytest.raises(VLMError, match=words) as caught:
        GenerationConfig(schema=schema)
    assert caught.value.code == "invalid_request"
    assert refusal(tiny.answer, SMALL, "?", schema=schema).code == "invalid_request"


def test_a_schema_nested_too_deeply_is_refused_without_recursion():
    deep = inner = {}
    for _ in range(100_000):
        inner["items"] = {}
        inner = inner["items"]
    with pytest.raises(VLMError, match="nested deeper than 64 levels"):
        GenerationConfig(schema=deep)
    while deep:
        deep = deep.pop("items", None)  # freed step by step too


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "chart"}, "Invalid type: chart"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"$ref": "http://127.0.0.1/schema"}, "does not fetch"),
        ({"$ref": "#/nowhere"}, "does not exist"),
        ({"not": {}}, "not"),
        ({"enum": []}, "nsatisfiable"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "greater than"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 2}]}, "oneOf"),
        ({"type": "\x1b[31m\nnothing"}, "cannot be followed"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_at_every_entry(tiny, schema, words):
    calls = [
        lambda config: tiny.answer(SMALL, "?", config=config),
        lambda config: tiny.chat_many([user("x")], config=config),
        lambda config: tiny.stream(user("x"), config=config),
        lambda config: JobReader(tiny, EngineOptions(), None)._row(0, Job(messages=user("x"), config=config)),
    ]
    for call in calls:
        error = refusal(call, GenerationConfig(schema=schema))
        assert error.code == "invalid_request"
        assert words in error.message
        assert len(error.message) <= 300
        assert error.message.isprintable()


def test_a_grammar_too_costly_for_a_step_fails_its_row_alone(tiny, monkeypatch):
    """In its error state the library allows the end, which would pass half a document for a whole one."""
    import llguidance

    given = llguidance.LLParserLimits
    small = {"step_lexer_fuel": 50, "step_max_items": 50, "precompute_large_lexemes": False}
    monkeypatch.setattr(llguidance, "LLParserLimits", lambda **limits: given(**limits, **small))
    vlm = VLM(tiny.model, tiny.tokenizer)
    hard = GenerationConfig(schema={"type": "string", "pattern": "^(a|b)*a(a|b){60}$"}, max_new_tokens=200)
    (reply,) = vlm.chat_many([user("x")], config=hard, return_errors=True)
    assert isinstance(reply, VLMError)
    assert reply.code == "invalid_request"
    assert "cannot be followed" in reply.message


def test_without_the_library_one_error_names_the_extra(tmp_path):
    program = """
import sys
sys.modules["llguidance"] = None
from vlm import VLM, GenerationConfig, Tokenizer, VisionLanguageModel, VLMError, preset
import numpy as np
model = VLM(VisionLanguageModel(preset("tiny")), Tokenizer.bytes_only())
picture = np.zeros((9, 9, 3), dtype=np.uint8)
print(model.answer(picture, "?", config=GenerationConfig(max_new_tokens=2)).finish_reason)
try:
    model.answer(picture, "?", schema={"type": "object"})
except VLMError as error:
    print(error.code, error.message)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    first, second = done.stdout.splitlines()
    assert first in ("stop", "length")
    assert second.startswith("invalid_request")
    assert "run: pip install llguidance" in second


def test_compiled_grammars_are_kept_and_bounded(tiny_model, monkeypatch):
    grammars = Grammars(Tokenizer.bytes_only(), 512)
    compiled = []
    given = grammars._compile
    monkeypatch.setattr(grammars, "_compile", lambda schema: compiled.append(schema) or given(schema))
    for _ in range(3):
        grammars.begin(BAR)
    assert len(compiled) == 1
    for number in range(NUM_KEPT + 5):
        grammars.begin({"const": number})
    assert len(grammars._compiled) == NUM_KEPT
    grammars.begin(BAR)
    assert len(compiled) == NUM_KEPT + 7


def test_replies_to_one_schema_do_not_share_their_way(tiny):
    grammars = Grammars(tiny.tokenizer, 512)
    first, second = grammars.begin({"const": "ab"}), grammars.begin({"const": "ab"})
    first.advance(ord('"'))
    assert (allowed(first), allowed(second)) == ({ord("a")}, {ord('"')})


def test_a_model_with_more_logits_than_tokens_is_held_too():
    constraint = Grammars(Tokenizer.bytes_only(), 520).begin(BAR)
    left, stuck = restrict(torch.zeros(1, 520), {0: constraint})
    assert left[0].isfinite().nonzero().flatten().tolist() == [ord("{")]
    assert stuck == {}


def test_neighbours_without_a_schema_are_not_held(tiny):
    logits = torch.randn(3, 512)
    left, _ = restrict(logits, {1: Grammars(tiny.tokenizer, 512).begin(BAR)})
    assert torch.equal(left[[0, 2]], logits[[0, 2]])
    assert left[1].isfinite().sum() == 1


def test_a_penalty_brings_nothing_back_that_the_grammar_ruled_out():
    """Both were seen, and the one that is left is penalised beyond what float32 holds."""
    sampler = Sampler(GenerationConfig(repetition_penalty=1e3), [0, 1], torch.device("cpu"))
    assert sampler.choose(torch.tensor([-torch.inf, -1e37])) == 1
