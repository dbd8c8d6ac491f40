"""Data: tasks with scorers, file sources, tokenizers, packing, and a loader with random access.

Entry points: `make_task`, `TaskConfig`, `Loader`, `DataConfig`, `Batch`, `load_tokenizer`,
`build_word_tokenizer`, `open_source`, `pack_rows`, `sft_row`. A batch is a pure function of
(source, seed, step).
"""

from jaxllm.data.batch import Batch
from jaxllm.data.loader import DataConfig, Loader
from jaxllm.data.pack import pack_rows, sft_row
from jaxllm.data.sources import open_source
from jaxllm.data.tasks import Example, Task, TaskConfig, make_task
from jaxllm.data.tokenizer import build_word_tokenizer, load_tokenizer, special_id

__all__ = ["Batch", "DataConfig", "Example", "Loader", "Task", "TaskConfig", "build_word_tokenizer",
           "load_tokenizer", "make_task", "open_source", "pack_rows", "sft_row", "special_id"]
