"""Attention: one rule of who sees whom, one contract, several backends."""

from quarterdeck.attention.dispatch import AttentionFunction, attention_names, check_attention, get_attention
from quarterdeck.attention.mask import AttentionMask

__all__ = ["AttentionFunction", "AttentionMask", "attention_names", "check_attention", "get_attention"]
