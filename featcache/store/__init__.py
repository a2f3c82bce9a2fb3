"""The store: caches on disk, written shard by shard and read as arrays and tables."""
