"""Where the bytes lie: safetensors and GGUF headers, shards, positional reads and writes."""
