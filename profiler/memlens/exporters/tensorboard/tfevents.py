"""TensorBoard event files, from tensorboard's own protocol buffers.

Built by hand and not through `torch.utils.tensorboard`, so that torch is not needed to export, and
not through `tensorboard.plugins.*.summary`, which imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from memlens.errors import MissingDependencyError

try:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter
except ImportError as error:
    raise MissingDependencyError("tensorboard", "write TensorBoard files", "tensorboard") from error

__all__ = ["EventFile"]


class EventFile:
    """One event file, which makes its folder one run of TensorBoard.

    Args:
        folder: the run's folder; made if it is not there.
        created_ns: time of the file's first record; TensorBoard takes it as the run's start.
    """

    def __init__(self, folder: Path, created_ns: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads every file with "tfevents" in its name. torch's writer puts the host's
        # name there too, which does not belong into something that people pass on.
        name = f"events.out.tfevents.{created_ns // 10**9}.memlens"
        self._file = (folder / name).open("xb")
        self._writer: Any = RecordWriter(self._file)
        self._add(Event(wall_time=created_ns / 1e9, file_version="brain.Event:2"))

    def __enter__(self) -> EventFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def scalar(self, tag: str, value: float, step: int, time_ns: int) -> None:
        """One point of a curve."""
        self._summary(Summary.Value(tag=tag, simple_value=value), step, time_ns)

    def text(self, tag: str, markdown: str, step: int, time_ns: int) -> None:
        """A text, which TensorBoard shows as markdown."""
        self._summary(
            Summary.Value(
                tag=tag,
                metadata=SummaryMetadata(
                    plugin_data=SummaryMetadata.PluginData(plugin_name="text")
                ),
                tensor=TensorProto(
                    dtype=DT_STRING,
                    string_val=[markdown.encode("utf-8")],
                    tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
                ),
            ),
            step,
            time_ns,
        )

    def image(self, tag: str, png: bytes, step: int, time_ns: int) -> None:
        """A picture."""
        # Width and height stand in the first chunk of a PNG, behind 16 bytes of signature and head.
        width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
        self._summary(Summary.Value(tag=tag, image=image), step, time_ns)

    def hparams(
        self,
        values: Mapping[str, str | float],
        metric_tags: Sequence[str] | None,
        time_ns: int,
        *,
        succeeded: bool = True,
    ) -> None:
        """The run's row in the table of hyperparameters.

        Args:
            values: the columns that describe the run; numbers, texts, and True or False.
            metric_tags: tags of scalars in this file, which become the other columns. None leaves
                the choice of all columns to TensorBoard, which then takes every hyperparameter and
                scalar of all rows that it finds.
            time_ns: when the run was at its peak.
            succeeded: whether it came to its end.
        """
        start = plugin_data_pb2.SessionStartInfo(start_time_secs=time_ns / 1e9)
        for name, value in values.items():
            if isinstance(value, str):
                # Protocol buffers hold valid Unicode only; a command line may hold other bytes.
                start.hparams[name].string_value = value.encode("utf-8", "replace").decode()
            elif isinstance(value, bool):
                start.hparams[name].bool_value = value
            else:
                start.hparams[name].number_value = value
        end = plugin_data_pb2.SessionEndInfo(
            status=api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE,
            end_time_secs=time_ns / 1e9,
        )
        contents = [
            (metadata.SESSION_START_INFO_TAG, {"session_start_info": start}),
            (metadata.SESSION_END_INFO_TAG, {"session_end_info": end}),
        ]
        if metric_tags is not None:
            experiment = api_pb2.Experiment(
                hparam_infos=[
                    api_pb2.HParamInfo(name=name, type=_data_type(value))
                    for name, value in values.items()
                ],
                metric_infos=[
                    api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metric_tags
                ],
            )
            contents.insert(0, (metadata.EXPERIMENT_TAG, {"experiment": experiment}))
        for tag, content in contents:
            data = plugin_data_pb2.HParamsPluginData(
                version=metadata.PLUGIN_DATA_VERSION, **content
            )
            self._summary(
                Summary.Value(
                    tag=tag,
                    metadata=metadata.create_summary_metadata(data),
                    tensor=metadata.NULL_TENSOR,
                ),
                0,
                time_ns,
            )

    def _summary(self, value: Any, step: int, time_ns: int) -> None:
        self._add(Event(wall_time=time_ns / 1e9, step=step, summary=Summary(value=[value])))

    def _add(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())


def _data_type(value: str | float) -> Any:
    if isinstance(value, str):
        return api_pb2.DATA_TYPE_STRING
    return api_pb2.DATA_TYPE_BOOL if isinstance(value, bool) else api_pb2.DATA_TYPE_FLOAT64
