"""Logs of other trainers as records: open_clip, TensorBoard, W&B, Hugging Face's Trainer, Lightning, any CSV file.

    record = fs.read_log("logs/run/out.log")
    record["temperature"], record.config["log"]["columns"]

`register` adds readers of other formats. Of several formats that recognise a file, the last registered one is used.
"""

from flowsim.logs.events import read_events as _read_events  # noqa: F401
from flowsim.logs.formats import FORMATS, Format, register
from flowsim.logs.hugging_face import read_state as _read_state  # noqa: F401
from flowsim.logs.lines import read_lines as _read_lines  # noqa: F401
from flowsim.logs.open_clip import read_folder as _read_folder  # noqa: F401
from flowsim.logs.read import read_log, read_logs
from flowsim.logs.rows import read_csv as _read_csv  # noqa: F401
from flowsim.logs.source import Source
from flowsim.logs.table import Table

__all__ = ["FORMATS", "Format", "Source", "Table", "read_log", "read_logs", "register"]
