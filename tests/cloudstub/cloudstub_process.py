"""A cloud server as a process: `cloudstub_process.py FOLDER [die-after-placing | die-before-forgetting | die-after-forgetting]`; prints its port."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from cloudstub_world import config

from cloudstub import store
from cloudstub.server import create_app
from configs.web import serve


def main() -> None:
    folder, mode = Path(sys.argv[1]), sys.argv[2:]
    if mode == ["die-after-placing"]:
        place = store.BlobStore._place

        def place_and_die(self: store.BlobStore, staging: store.Staging) -> None:
            place(self, staging)
            os.kill(os.getpid(), signal.SIGKILL)

        store.BlobStore._place = place_and_die
    if mode and mode[0].endswith("forgetting"):
        forget, remove = store.BlobStore._forget, store._unlink

        async def forget_and_die(self: store.BlobStore, *args: Any) -> Any:
            await forget(self, *args)
            os.kill(os.getpid(), signal.SIGKILL)

        def die(paths: Sequence[Path]) -> None:
            if paths:
                os.kill(os.getpid(), signal.SIGKILL)
            remove(paths)

        if mode == ["die-before-forgetting"]:
            store.BlobStore._forget = forget_and_die
        else:
            store._unlink = die
    app = create_app(config(folder, lambda: time.time_ns() // 1_000_000))
    asyncio.run(serve(app, "127.0.0.1", 0, lambda port: print(port, flush=True)))


if __name__ == "__main__":
    main()
