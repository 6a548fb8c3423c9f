"""How many capitals the shipped model knows: the figure in its card.

python -m training.midshipman.capitals [--dtype bfloat16]
"""

from __future__ import annotations

import argparse

from quarterdeck import AutoModelForCausalLM, AutoTokenizer
from training.midshipman import sources
from training.midshipman.prepare import capitals_of


def main() -> None:
    """Ask for each capital in the training data, greedily, and count the answers that name it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained("midshipman")
    model = AutoModelForCausalLM.from_pretrained("midshipman", dtype=args.dtype)
    facts = capitals_of(sources.unpack(sources.FACTBOOK))
    right = 0
    for country, city in facts:
        chat = [{"role": "user", "content": f"What is the capital of {country}?"}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
        answer = model.generate(ids, max_new_tokens=40)[0, ids.shape[1] :]
        right += city in tokenizer.decode(answer)
    print(f"{right} of {len(facts)} capitals right")


if __name__ == "__main__":
    main()
