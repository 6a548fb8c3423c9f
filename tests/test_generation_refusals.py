"""What generate() says to arguments that cannot be right: our words, with a remedy, and never a traceback of torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quarterdeck.config import CohereConfig
from quarterdeck.errors import InputError
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.model import CohereForCausalLM

V = 20


@pytest.fixture(scope="module")
def model() -> CohereForCausalLM:
    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.4,
        pad_token_id=0,
        bos_token_id=5,
        eos_token_id=7,
    )
    return CohereForCausalLM(config).eval()


PROMPT = torch.tensor([[8, 9, 10], [11, 12, 13]])


def nothing(*_: Any) -> None:
    """Forgets to return."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation_config": {"max_new_tokens": 3}}, "generation_config is a dict.*GenerationConfig\\(max_new"),
        ({"logits_processor": nothing}, r"logits_processor is a function.*put it in a list, logits_processor=\[...\]"),
        ({"stopping_criteria": nothing}, "stopping_criteria is a function.*put it in a list"),
        ({"logits_processor": 3}, "logits_processor is a int and must be a list"),
        ({"stopping_criteria": [3]}, r"stopping_criteria\[0\]=3 cannot be called"),
        ({"logits_processor": [nothing]}, r"processor nothing returned None.*tensor \[2, 20\]: it lacks a return"),
        ({"logits_processor": [lambda ids, scores: scores[:, :3]]}, r"returned a tensor \[2, 3\] of torch.float32"),
        ({"stopping_criteria": [nothing]}, "criterion nothing returned None and must return a bool"),
        (
            {"stopping_criteria": [lambda *_: torch.zeros(3, dtype=torch.bool)]},
            r"returned a tensor \[3\] of torch.bool",
        ),
        ({"stopping_criteria": [lambda *_: torch.zeros(2)]}, r"returned a tensor \[2\] of torch.float32"),
        ({"seed": "x"}, "seed='x' must be an integer"),
        ({"seed": 2**70}, r"seed=\d+ must be an integer from -2\*\*63 to"),
        ({"generator": 5}, "generator=5 is no torch.Generator"),
        ({"streamer": "x"}, "streamer='x' is a str without put and end"),
        ({"forced_eos_token_id": V}, "forced_eos_token_id=20: the model has 20 tokens, so the highest id is 19"),
        ({"forced_bos_token_id": 99}, "forced_bos_token_id=99.*99 is outside"),
        ({"suppress_tokens": [3, 255]}, r"suppress_tokens=\[3, 255\].*255 is outside"),
        ({"begin_suppress_tokens": [V]}, "20 is outside"),
    ],
)
def test_refused(model: CohereForCausalLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.generate(PROMPT, max_new_tokens=3, **({"do_sample": True} if "seed" in options else {}), **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_embeddings_of_another_type_are_refused(model: CohereForCausalLM, dtype: torch.dtype) -> None:
    embeds = model.get_input_embeddings()(PROMPT).detach().to(dtype)
    with pytest.raises(InputError, match=rf"is {dtype} and the model torch.float32: pass inputs_embeds.to\(torch.fl"):
        model.generate(inputs_embeds=embeds, max_new_tokens=3)


@pytest.mark.parametrize("done", [True, np.bool_(True), torch.tensor(True), torch.tensor([True, True])])
def test_a_criterion_may_answer_for_all_rows_or_for_each(model: CohereForCausalLM, done: Any) -> None:
    ids = model.generate(PROMPT, max_new_tokens=3, eos_token_id=None, stopping_criteria=[lambda *_: done])
    assert ids.shape == (2, 4)


# ------------------------------------------------------------------------- no token left to choose


def ban_all(row: int) -> Any:
    def processor(ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[row] = -math.inf if ids.shape[1] == 4 else scores[row]
        return scores

    return processor


@pytest.mark.parametrize("sample", [False, True])
def test_a_row_without_a_token_to_choose_is_an_error(model: CohereForCausalLM, sample: bool) -> None:
    with pytest.raises(InputError, match=r"row 1 has no token to choose at position 4: every one is banned"):
        model.generate(PROMPT, max_new_tokens=3, eos_token_id=None, do_sample=sample, logits_processor=[ban_all(1)])
    with pytest.raises(InputError, match=r"row 0 .*suppress_tokens"):
        model.generate(PROMPT, max_new_tokens=3, suppress_tokens=list(range(V)), do_sample=sample)


@pytest.mark.parametrize("sample", [False, True])
def test_scores_that_are_no_numbers_are_an_error(model: CohereForCausalLM, sample: bool) -> None:
    def spoil(ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(1, torch.tensor([3]), math.nan)

    with pytest.raises(InputError, match="row 0 has no token to choose at position 3: the scores have NaN"):
        model.generate(PROMPT, max_new_tokens=3, do_sample=sample, logits_processor=[spoil])


@pytest.mark.parametrize("sample", [False, True])
def test_a_finished_row_needs_no_token(model: CohereForCausalLM, sample: bool) -> None:
    def end_first(ids: Tensor, scores: Tensor) -> Tensor:
        scores = torch.full_like(scores, -math.inf)
        scores[1, 9] = 0.0
        if ids.shape[1] == 3:
            scores[0, 7] = 0.0
        return scores

    ids = model.generate(PROMPT, max_new_tokens=3, do_sample=sample, logits_processor=[end_first])
    assert ids[:, 3:].tolist() == [[7, 0, 0], [9, 9, 9]]


@pytest.mark.parametrize("sample", [False, True])
def test_a_decaying_length_penalty_leaves_banned_end_tokens_banned(model: CohereForCausalLM, sample: bool) -> None:
    output = model.generate(
        PROMPT,
        max_new_tokens=9,
        min_new_tokens=6,
        exponential_decay_length_penalty=(1, 50.0),
        do_sample=sample,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert not any(bool(scores.isnan().any()) for scores in output.scores)
    new = output.sequences[:, 3:]
    assert not bool((new[:, :6] == 7).any())
    assert new[:, 6].tolist() == [7, 7]


# ------------------------------------------------------------------------- scores of what was chosen


def test_transition_scores_need_scores_of_the_same_sequences(model: CohereForCausalLM) -> None:
    output = model.generate(PROMPT, max_new_tokens=3, return_dict_in_generate=True, output_scores=True)
    with pytest.raises(InputError, match=r"beam_indices is \[1, 3\] and sequences \[2, 6\]: give all three from one"):
        model.compute_transition_scores(output.sequences, output.scores, torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="there are no scores: generate with return_dict_in_generate"):
        model.compute_transition_scores(output.sequences, output.logits)
    with pytest.raises(InputError, match="scores are of 2 rows and 3 steps"):
        model.compute_transition_scores(output.sequences[:1], output.scores)


@pytest.mark.parametrize("use_diff", [True, False])
def test_options_go_to_a_file_and_come_back(tmp_path: Path, use_diff: bool) -> None:
    config = GenerationConfig(max_new_tokens=5, sequence_bias={(3, 4): 1.0})
    config.to_json_file(tmp_path / "generation_config.json", use_diff=use_diff)
    read = GenerationConfig.from_pretrained(tmp_path)
    assert (read.max_new_tokens, read.sequence_bias) == (5, [[[3, 4], 1.0]])
    assert ("top_k" in (tmp_path / "generation_config.json").read_text()) is not use_diff
