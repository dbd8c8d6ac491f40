"""Data: tasks with scorers, file sources, token caches, chats, packing, mixtures, a loader with random access.

Entry points: `Loader`, `DataConfig`, `SourceConfig`, `Batch`, `prepare`, `read_records`, `load_tokenizer`,
`build_word_tokenizer`, `character_tokenizer`, `load_chat_template`, `encode_chat`, `PackedRows`, `sft_row`,
`make_task`, `TaskConfig`.
A batch is a pure function of (sources, seed, step), and so is any part of its rows.
"""

from jaxllm.data.batch import Batch
from jaxllm.data.chat import ChatTemplate, encode_chat, load_chat_template
from jaxllm.data.loader import DataConfig, Loader, SourceConfig
from jaxllm.data.pack import PackedRows, sft_row
from jaxllm.data.prepare import is_cache, prepare
from jaxllm.data.sources import read_records
from jaxllm.data.tasks import Example, Task, TaskConfig, make_task
from jaxllm.data.tokenizer import (
    build_word_tokenizer,
    character_tokenizer,
    check_vocabulary,
    load_tokenizer,
    special_id,
)

__all__ = ["Batch", "ChatTemplate", "DataConfig", "Example", "Loader", "PackedRows", "SourceConfig", "Task",
           "TaskConfig", "build_word_tokenizer", "character_tokenizer", "check_vocabulary", "encode_chat", "is_cache",
           "load_chat_template", "load_tokenizer", "make_task", "prepare", "read_records", "sft_row", "special_id"]
