"""Where tokenizers rebuilt from GGUF differ from llama.cpp, and why.

The key is a vocabulary (or a tokenizer model) and what differs there. A difference that is gone
must leave this table: the tests fail when an exception passes.
"""

from __future__ import annotations

EXCEPTIONS = {
    ("command-r", "pieces"): "tokens outside the byte alphabet are given as their text; llama.cpp "
    "writes [UNK_BYTE_0x...] with the token inside",
    ("hybriddna", "load"): "cuts DNA between <dna> and </dna> into 6-mers; no model we cover",
    ("test", "load"): "hashes text for llama.cpp's own tests; it has no vocabulary",
}
