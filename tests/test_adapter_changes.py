"""Adapters that are weighted, merged, unmerged and removed: what each call does, refuses, and makes forgotten."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adapters import lora
from adapters.lora import AdapterError, LoRAConfig
from tests.conftest import random_model
from tests.image_files import noise_picture
from vlm import VLM, Tokenizer, VLMError, preset
from vlm.native.functions import is_untouched
from vlm.quantization import quantize_model

PICTURE = noise_picture((30, 40))


def add(model: nn.Module, targets: tuple[str, ...] = ("*_proj", "fc1"), name: str = "default", seed: int = 0) -> None:
    """Put an adapter that changes something on top."""
    generator = torch.Generator().manual_seed(seed)
    for adapter in lora.add_adapter(model, LoRAConfig(rank=2, alpha=2, targets=targets), name=name).values():
        for matrix in (adapter.down, adapter.up):
            nn.init.normal_(matrix, std=0.3, generator=generator)


def two_layers() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    add(model, ("0", "1"))
    return model


# Merging


def test_what_is_merged_can_be_merged_for_good_later():
    model = two_layers()
    lora.merge(model)
    merged = {name: weight.clone() for name, weight in model.state_dict().items() if ".lora." not in name}
    lora.merge(model, keep_original=False)
    assert lora.adapter_names(model) == []
    assert list(model.state_dict()) == list(merged)
    assert all(torch.equal(weight, merged[name]) for name, weight in model.state_dict().items())


def test_a_merge_that_one_layer_refuses_changes_none():
    model = random_model(preset("tiny"))
    quantize_model(model, "int8")
    add(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AdapterError, match=r"decoder.* is quantised and cannot take an adapter in"):
        lora.merge(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(merged for *_, merged in lora.state(model))


def test_no_quantised_weight_is_expanded_to_be_refused():
    class Refuses(nn.Module):
        in_features, out_features = 3, 3

        @property
        def weight(self) -> Tensor:
            raise AssertionError("the weight was expanded")

    model = nn.Sequential(Refuses())
    lora.add_adapter(model, LoRAConfig(rank=1, targets=("0",)))
    with pytest.raises(AdapterError, match="quantised"):
        lora.merge(model)


def test_a_merged_layer_has_no_hook_until_it_is_unmerged():
    model, x = two_layers(), torch.randn(3, 6)
    expected = model(x)
    lora.merge(model)
    assert all(is_untouched(layer) for layer in model)
    assert torch.allclose(model(x), expected, atol=1e-5)
    lora.unmerge(model)
    assert torch.equal(model(x), expected)
    lora.remove(model, "default")
    assert all(is_untouched(layer) for layer in model)


# Refusals


@pytest.mark.parametrize("change", [lambda model, name: lora.set_strength(model, name, 2.0), lora.remove])
def test_a_merged_or_an_unknown_adapter_is_neither_weighted_nor_removed(change):
    model = two_layers()
    with pytest.raises(AdapterError, match="no adapter is named 'other'; the model has default"):
        change(model, "other")
    lora.merge(model)
    before = lora.state(model)
    with pytest.raises(
        AdapterError, match="'default' is merged; unmerge the adapters before one is changed or removed"
    ):
        change(model, "default")
    assert lora.state(model) == before


def test_an_adapter_that_is_merged_in_some_layers_stays_in_all():
    model = two_layers()
    lora.merge(model[1])
    with pytest.raises(AdapterError, match="is merged"):
        lora.remove(model, "default")
    assert len(lora.state(model)) == 2


# Pictures


def _weigh(model: nn.Module) -> None:
    lora.set_strength(model, "default", -1.0)


def _merge_for_good(model: nn.Module) -> None:
    lora.merge(model, keep_original=False)


def _replace(model: nn.Module) -> None:
    lora.remove(model, "default")
    add(model, seed=1)


def _add_and_merge_for_good(model: nn.Module) -> None:
    add(model, name="second", seed=1)
    _merge_for_good(model)


def _logits(vlm: VLM) -> Tensor:
    question = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "?"}]
    return vlm.logits([{"role": "user", "content": question}])


@pytest.mark.parametrize(
    "change",
    [
        _weigh,
        lora.merge,
        _merge_for_good,
        _replace,
        _add_and_merge_for_good,
        lambda model: lora.remove(model, "default"),
    ],
)
def test_pictures_are_encoded_anew_under_other_adapters(change: Callable[[nn.Module], None]):
    model = random_model(preset("tiny"))
    add(model)
    vlm = VLM(model, Tokenizer.bytes_only())
    _logits(vlm)
    encoded = vlm.encode_image(PICTURE)
    change(model)
    assert torch.equal(_logits(vlm), _logits(VLM(model, Tokenizer.bytes_only())))
    with pytest.raises(VLMError, match="another model"):
        vlm.encode_image(encoded)


def test_what_was_encoded_under_the_same_adapters_counts():
    """Of another process, say; and adapters of the decoder change nothing of what is kept in an encoded picture."""
    first, second = (random_model(preset("tiny")) for _ in range(2))
    for model in (first, second):
        add(model)
        lora.set_strength(model, "default", 0.5)
    encoded = VLM(first, Tokenizer.bytes_only()).encode_image(PICTURE)
    vlm = VLM(second, Tokenizer.bytes_only())
    assert vlm.encode_image(encoded) is encoded
    add(second.decoder, ("q_proj",), name="second")
    assert vlm.encode_image(encoded) is encoded


def test_nothing_is_forgotten_while_adapters_stay_as_they_are():
    model = random_model(preset("tiny"))
    add(model)
    vlm = VLM(model, Tokenizer.bytes_only())
    assert vlm.encode_image(PICTURE) is vlm.encode_image(PICTURE)
