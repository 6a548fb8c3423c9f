"""What the tokenizer tests share: texts in many scripts, a tiny vocabulary, and the template of Command-R."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

FIRST_TOKENS = (
    "<PAD>",
    "<UNK>",
    "<CLS>",
    "<SEP>",
    "<MASK_TOKEN>",
    "<BOS_TOKEN>",
    "<EOS_TOKEN>",
    "<EOP_TOKEN>",
)
LAST_TOKENS = (
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|YES_TOKEN|>",
    "<|NO_TOKEN|>",
    "<|GOOD_TOKEN|>",
    "<|BAD_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    *(f"<|USER_{i}_TOKEN|>" for i in range(10)),
    *(f"<|EXTRA_{i}_TOKEN|>" for i in range(10)),
)

TEXTS = (
    # the ten languages that Command-R was made for
    "Emperor penguins are the tallest growing up to 122 cm in height; they don't fly, they swim!",
    "Les manchots empereurs sont les plus grands : jusqu'à 122 cm de hauteur, n'est-ce pas ? Où vivent-ils déjà ?",
    "Los pingüinos emperador son los más altos; ¿cuánto miden? ¡Hasta 122 centímetros! Año tras año, señor.",
    "I pinguini imperatore sono i più alti: fino a 122 cm. Perché? Così è la natura, papà.",
    "Kaiserpinguine sind die größten Pinguine; sie werden bis zu 122 cm groß. Äpfel, Öl und Übermut – Straße.",
    "Os pinguins-imperadores são os mais altos; não voam, mas nadam até 500 m de profundidade. Coração, avô, avó.",
    "コウテイペンギンは最も背が高く、体長は122センチに達します。南極だけに生息しています。ゔぁーチャル！",
    "황제펭귄은 키가 가장 커서 122센티미터까지 자랍니다. 남극에서만 삽니다. 안녕하세요?",
    "帝企鹅是最高的企鹅,身高可达122厘米。它们只生活在南极洲。“你好”，世界！",
    "بطاريق الإمبراطور هي الأطول، إذ يصل ارتفاعها إلى ١٢٢ سم. تعيش في القارة القطبية الجنوبية فقط؟",
    # others
    "Императорские пингвины — самые высокие: до 122 см. Ёжик в тумане. Ελληνικά: πιγκουίνοι. עברית: פינגווינים",
    "हिन्दी: पेंगुइन १२३ | ไทย: เพนกวิน ๑๒๓ | ខ្មែរ: កាន់តែពិសេស | Tiếng Việt: chim cánh cụt hoàng đế",
    # code
    'def greet(name: str = "world") -> None:\n\tfor i in range(10):\n        print(f"Hello, {name}! {i:03d}")\n\n',
    "<div class='a'>&amp; 3 < 4 && 5 >= 2</div> SELECT * FROM t WHERE x=0x1F; a+=b**2; $HOME/~user\\path C:\\n",
    # emoji, with skin tones, joiners, flags, variation selectors
    "🚀 (normal) 😶‍🌫️ (joined) 👩🏽‍🚀👨‍👩‍👧‍👦 🇨🇦🇫🇷 ✅❤️ 1️⃣ 🦙.cpp",
    # whitespace
    "",
    " ",
    "   leading and trailing   ",
    "a\tb\t\tc\n\n\nd\r\ne\r f\u00a0g\u2003h\u200bi\u3000j\u2028k\ufeffl\x0bm\x0cn",
    "one  two   three    four\n    five\n\t\tsix \n \n seven",
    # composed and decomposed, ligatures, fullwidth, combining marks without a base: NFC changes some of these
    "é e\u0301 Å A\u030a \u212b ﬁ ﬃ Ａ１ ½ ² Ⅷ \u0301\u0323 q\u0323\u0307 q\u0307\u0323 가 \u1100\u1161 \u0344 \u2126",
    # digits of all kinds, contractions, special tokens in text, control characters, the ends of the code space
    "0123456789 3.14159 1,000,000 ٣٤٥ ४५६ x2y3 ½ I'll you've they're WE'LL o'clock 'tis",
    "<BOS_TOKEN>Hi<|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <PAD><UNK> <| USER_TOKEN |> <BOS_TOKEN",
    "\x00\x01\x7f\x80\x9f \ufffd \ufffe \U0010ffff \U000e0001 \ud7ff\ue000",
)

TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% if system != false %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system + '<|END_OF_TURN_TOKEN|>' }}"
    "{% endif %}"
    "{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set content = message['content'] %}{% if message['role'] == 'user' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
"""Written from its description: what Command-R's default template does with a conversation."""

MARKED_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}<|CHATBOT_TOKEN|>"
    "{% generation %}{{ message.content }}<|END_OF_TURN_TOKEN|>{% endgeneration %}"
    "{% else %}<|USER_TOKEN|>{{ message.content }}<|END_OF_TURN_TOKEN|>{% endif %}{% endfor %}"
)
"""A template that marks what the assistant says."""


def is_special(token: str) -> bool:
    """Whether the public checkpoints call a token special: of the last ones only the end of a turn."""
    return token in FIRST_TOKENS or token == "<|END_OF_TURN_TOKEN|>"


def train_tiny_tokenizer(vocab_size: int = 700) -> Tokenizer:
    """A byte-level BPE tokenizer with Command-R's pipeline and order of tokens, learned from the texts above."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in FIRST_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=is_special(token)) for token in LAST_TOKENS])
    return tokenizer


def hub_config(tokenizer: Tokenizer) -> dict[str, object]:
    """A tokenizer_config.json as the public checkpoints have it, ``null`` for the unknown token included."""
    added = {
        str(index): {**token.__getstate__(), "special": is_special(token.content)}
        for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": "<BOS_TOKEN>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|END_OF_TURN_TOKEN|>",
        "legacy": True,
        "merges_file": None,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<PAD>",
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "CohereTokenizerFast",
        "unk_token": None,
        "use_default_system_prompt": False,
        "vocab_file": None,
    }


def write_hub_files(folder: Path, tokenizer: Tokenizer, **changes: object) -> Path:
    """The files of a public checkpoint's tokenizer."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {**hub_config(tokenizer), "chat_template": TEMPLATE, **changes}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder
