"""The configuration of a run: typed, saved in the run folder, and read back from there.

Nothing here imports torch, so that ``concordet train --help`` is quick.
"""

from concordet.engine.config.files import (
    MAY_CHANGE,
    checked_settings,
    flat,
    from_dict,
    load_config,
    read_settings,
    rename_settings,
    save_config,
    to_dict,
    with_absolute_paths,
)
from concordet.engine.config.settings import (
    CalibrationConfig,
    DataConfig,
    OptimConfig,
    TrainConfig,
)

__all__ = [
    "MAY_CHANGE",
    "CalibrationConfig",
    "DataConfig",
    "OptimConfig",
    "TrainConfig",
    "checked_settings",
    "flat",
    "from_dict",
    "load_config",
    "read_settings",
    "rename_settings",
    "save_config",
    "to_dict",
    "with_absolute_paths",
]
