"""Where values are kept: in memory, in RocksDB."""
