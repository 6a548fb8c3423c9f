"""Outputs: one object that is a dataclass, a dictionary, a tuple and a pytree, whatever is set in it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.parallel.scatter_gather import gather
from torch.utils import _pytree

from parity import make_ours, random_ids, transformers
from quarterdeck.generation.output import GenerateDecoderOnlyOutput
from quarterdeck.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, ModelOutput

A, B = torch.zeros(2, 3), torch.ones(2, 3)


def assert_in_step(output: ModelOutput, expected: dict[str, Any]) -> None:
    assert isinstance(output, dict)
    assert list(output) == list(output.keys()) == list(expected)
    for position, (name, value) in enumerate(expected.items()):
        assert output[name] is output[position] is getattr(output, name) is value
        assert output.get(name) is dict(output)[name] is {**output}[name] is value
    assert len(output) == len(expected) == len(output.to_tuple())
    assert output[:] == output.to_tuple() == tuple(output.values())


def test_all_views_show_what_is_there() -> None:
    assert_in_step(CausalLMOutputWithPast(), {})
    assert_in_step(CausalLMOutputWithPast(logits=A), {"logits": A})
    assert_in_step(CausalLMOutputWithPast(A, B), {"loss": A, "logits": B})
    scores = (B,)
    assert_in_step(GenerateDecoderOnlyOutput(A, scores=scores), {"sequences": A, "scores": scores})
    assert CausalLMOutputWithPast(logits=A).get("loss", 5) == 5


@pytest.mark.parametrize("how", ["attribute", "key"])
def test_setting_changes_all_views(how: str) -> None:
    def put(name: str, value: Any) -> None:
        setattr(output, name, value) if how == "attribute" else output.__setitem__(name, value)

    output = CausalLMOutputWithPast(logits=A)
    put("logits", B)
    assert_in_step(output, {"logits": B})
    put("attentions", (A,))
    put("loss", A)  # the first field, set last: views stay in the order of the fields
    assert_in_step(output, {"loss": A, "logits": B, "attentions": output.attentions})
    put("logits", None)
    assert_in_step(output, {"loss": A, "attentions": output.attentions})
    assert output.logits is None


REFUSED: dict[str, Callable[[Any], Any]] = {
    "del": lambda output: output.__delitem__("logits"),
    "pop": lambda output: output.pop("logits"),
    "popitem": lambda output: output.popitem(),
    "clear": lambda output: output.clear(),
    "update": lambda output: output.update(loss=A),
    "setdefault": lambda output: output.setdefault("loss", A),
    "merge": lambda output: output.__ior__({"loss": A}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_put_views_out_of_step_is_refused(case: str) -> None:
    output = CausalLMOutputWithPast(logits=A)
    with pytest.raises(TypeError, match="CausalLMOutputWithPast has fixed fields: set one, to None"):
        REFUSED[case](output)
    assert_in_step(output, {"logits": A})


def test_unknown_names() -> None:
    output = CausalLMOutputWithPast(logits=A)
    with pytest.raises(KeyError, match=r"no field 'logit', only loss, logits, past_key_values"):
        output["logit"] = B
    with pytest.raises(KeyError):
        output["loss"]
    with pytest.raises(IndexError):
        output[1]


@pytest.mark.parametrize("given", [{"loss": A, "logits": B}, [("loss", A), ("logits", B)]], ids=["mapping", "pairs"])
def test_may_be_made_of_names_and_values(given: Any) -> None:
    assert_in_step(CausalLMOutputWithPast(given), {"loss": A, "logits": B})
    assert_in_step(CausalLMOutputWithPast(item for item in dict(given).items()), {"loss": A, "logits": B})


def test_replicas_are_gathered_by_field() -> None:
    # what torch.nn.DataParallel does with the outputs of its replicas
    outputs = [CausalLMOutputWithPast(logits=part, hidden_states=(part, -part)) for part in (A, B)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.nn.parallel.scatter_gather.Gather.apply", lambda _, __, *parts: torch.cat(parts))
        whole = gather(outputs, 0)
    assert type(whole) is CausalLMOutputWithPast
    assert torch.equal(whole.logits, torch.cat([A, B]))
    assert torch.equal(whole["hidden_states"][1], -torch.cat([A, B]))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_are_whole(copied: Callable[[ModelOutput], ModelOutput]) -> None:
    for output in (CausalLMOutputWithPast(logits=B, attentions=(A,)), GenerateDecoderOnlyOutput(A, scores=(B,))):
        other = copied(output)
        assert type(other) is type(output)
        assert list(other) == list(output)
        assert torch.equal(other[0], output[0])
        assert_in_step(other, dict(other))


def test_pytrees() -> None:
    output = CausalLMOutputWithPast(logits=A, hidden_states=(A, B))
    doubled = _pytree.tree_map(lambda tensor: tensor + 1, output)
    assert type(doubled) is CausalLMOutputWithPast
    assert torch.equal(doubled.hidden_states[1], B + 1)
    assert list(doubled) == ["logits", "hidden_states"]


@torch.no_grad()
def test_model_outputs_have_the_names_and_order_of_transformers() -> None:
    theirs = {
        BaseModelOutputWithPast: transformers.modeling_outputs.BaseModelOutputWithPast,
        CausalLMOutputWithPast: transformers.modeling_outputs.CausalLMOutputWithPast,
        GenerateDecoderOnlyOutput: transformers.generation.GenerateDecoderOnlyOutput,
    }
    for ours, reference in theirs.items():
        assert list(ours.__dataclass_fields__) == list(reference.__dataclass_fields__)
    output = make_ours()(random_ids(1, 3), labels=random_ids(1, 3), output_hidden_states=True)
    assert list(output) == ["loss", "logits", "past_key_values", "hidden_states"]
    assert_in_step(output, dict(output))
