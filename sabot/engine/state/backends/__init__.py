"""The backends of state: in memory and in RocksDB."""
