"""Turn a run into the files that are shipped in the package.

    python -m training.midshipman.export --run training/runs/midshipman --out FOLDER

Takes the checkpoint, the settings and the log of --run and writes bfloat16 weights, configuration, tokenizer files,
the chat template (the default one of quarterdeck.chat) and the curves to --out. The model card there is written by
hand and stays as it is. --out src/quarterdeck/assets/midshipman replaces the model that is shipped.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from quarterdeck.chat.prompts.families import jinja_template
from quarterdeck.training.checkpoint import load
from quarterdeck.training.curves import draw, read_log
from quarterdeck.training.midshipman import vocabulary
from training.midshipman.train import build_model

ASSETS = Path(__file__).resolve().parents[2] / "src/quarterdeck/assets/midshipman"


def _entry(content: str, special: bool) -> dict[str, Any]:
    return {
        "content": content,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": special,
    }


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json with Command-R's choices; only END_OF_TURN among the chat tokens is special."""
    ids = list(enumerate(vocabulary.CONTROL))
    ids += list(enumerate(vocabulary.CHAT, start=vocabulary.SIZE - len(vocabulary.CHAT)))
    special = {*vocabulary.CONTROL, vocabulary.END_OF_TURN}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): _entry(token, token in special) for i, token in ids},
        "bos_token": "<BOS_TOKEN>",
        "clean_up_tokenization_spaces": False,
        "eos_token": vocabulary.END_OF_TURN,
        "legacy": True,
        "model_max_length": 8192,
        "pad_token": "<PAD>",
        "padding_side": "left",
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "CohereTokenizerFast",
        "unk_token": None,
        "use_default_system_prompt": False,
    }


def special_tokens_map() -> dict[str, Any]:
    """special_tokens_map.json: the three tokens that have a role."""
    roles = {"bos_token": "<BOS_TOKEN>", "eos_token": vocabulary.END_OF_TURN, "pad_token": "<PAD>"}
    return {role: {k: v for k, v in _entry(token, True).items() if k != "special"} for role, token in roles.items()}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_template(out: Path) -> None:
    """chat_template.jinja: the default format, in which the conversations of the training texts are written."""
    (out / "chat_template.jinja").write_text(jinja_template("default"), encoding="utf-8", newline="")


def export(run: Path, out: Path, data: Path | None = None, shard: str = "1GB") -> None:
    """Write everything but the card; `data` is what the run was trained on, if not ``run/data``."""
    tensors, state = load(run / "checkpoint")
    model = build_model(json.loads((run / "settings.json").read_text())["architecture"], seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    model.to(torch.bfloat16).save_pretrained(out, max_shard_size=shard)
    config = json.loads((out / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")  # the spelling that readers of every age understand
    _write(out / "config.json", dict(sorted(config.items())))
    shutil.copyfile((data or run / "data") / "tokenizer.json", out / "tokenizer.json")
    write_template(out)
    _write(out / "tokenizer_config.json", tokenizer_config())
    _write(out / "special_tokens_map.json", special_tokens_map())
    _write(
        out / "generation_config.json",
        {"bos_token_id": vocabulary.BOS_ID, "eos_token_id": vocabulary.END_OF_TURN_ID, "pad_token_id": 0},
    )
    (out / "loss.svg").write_text(draw(read_log(run / "log.jsonl")), encoding="utf-8")
    print(f"exported step {state['progress']['step']} to {out}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("training/runs/midshipman"))
    parser.add_argument("--data", type=Path, help="what prepare made; default: data in --run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shard", default="1GB", help="largest file of weights, e.g. 15MB")
    args = parser.parse_args()
    export(args.run, args.out, args.data, args.shard)


if __name__ == "__main__":
    main()
