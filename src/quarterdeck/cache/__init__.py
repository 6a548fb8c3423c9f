"""Key-value caches: a protocol, the growing cache that defines it, and one of fixed size."""

from quarterdeck.cache.base import Cache, CacheLayer
from quarterdeck.cache.dynamic import DynamicCache
from quarterdeck.cache.static import StaticCache

__all__ = ["Cache", "CacheLayer", "DynamicCache", "StaticCache"]
