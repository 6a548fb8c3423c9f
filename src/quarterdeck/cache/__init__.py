"""Key-value caches: a protocol, the growing cache that defines it, and others that store differently."""

from quarterdeck.cache.base import Cache, CacheLayer
from quarterdeck.cache.dynamic import DynamicCache, OffloadedCache
from quarterdeck.cache.quantized import QuantizedCache
from quarterdeck.cache.static import StaticCache

__all__ = ["Cache", "CacheLayer", "DynamicCache", "OffloadedCache", "QuantizedCache", "StaticCache"]
