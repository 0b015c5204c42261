from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from embedding_service.backend.fake import FakeBackend
from embedding_service.service import Addresses, running
from embedding_service.settings import Settings

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(200))]


@pytest.fixture(scope="session")
def tokenizer_json() -> bytes:
    """One token a word, w0 to w199; [CLS] is 2 and [SEP] 3."""
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer.to_str().encode()


Start = Callable[..., Awaitable[Addresses]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts the service around a backend, on free ports, with any settings."""
    async with AsyncExitStack() as stack:

        async def begin(*backends: FakeBackend, **settings: object) -> Addresses:
            values = {"grpc_port": 0, "http_port": 0, "drain_seconds": 2.0, **settings}
            return await stack.enter_async_context(running(backends, Settings(**values)))  # type: ignore[arg-type]

        yield begin
