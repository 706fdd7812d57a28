"""varscale dashboard: a W&B workspace with the panels of a scaling study, over the runs of this study.

Losses against tokens and FLOPs, the loss of each scale, health and speed, the last loss against size. The report shows
the same without a server.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from varscale.app.config import ConfigError
from varscale.schedule import ScaleSchedule


class DashboardError(ConfigError):
    """The workspace could not be created: says what is missing."""


def main(cfg: DictConfig) -> None:
    """Create the workspace and print its address."""
    if cfg.logger.mode == "disabled":
        raise DashboardError("logger.mode=disabled: this study sends nothing to W&B; use logger.mode=online")
    print(save(workspace(cfg, cfg.dashboard.entity or default_entity())))


def default_entity() -> str:
    """The user or team that this machine's W&B login stands for."""
    import wandb

    remedy = "log in with wandb login or set WANDB_API_KEY, and check the network"
    if wandb.api.api_key is None:
        raise DashboardError(f"there is no W&B login on this machine; {remedy}")
    try:
        entity = wandb.Api(timeout=20).default_entity
    except Exception as error:
        raise DashboardError(f"W&B cannot be reached ({error}); {remedy}") from error
    if not entity:
        raise DashboardError("the W&B account has no default entity; give one as dashboard.entity=NAME")
    return str(entity)


def workspace(cfg: DictConfig, entity: str) -> Any:
    """The workspace, not yet saved: one filter on the study, runs grouped by the sweep."""
    ws, wr = _packages()
    scales = ScaleSchedule.parse(cfg.tokenizer.schedule).scales

    def lines(title: str, *keys: str, x: str = "tokens_seen", log: bool = True) -> Any:
        return wr.LinePlot(title=title, x=x, y=list(keys), log_x=log, log_y=log)

    def sizes(title: str, y: str, x: str = "params_total") -> Any:
        return wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y), log_x=True, log_y=True)

    sections = [
        ws.Section(
            name="Loss",
            panels=[
                lines("held-out nat/token against tokens", "val/nats_per_token_avg"),
                lines("held-out nat/token against FLOPs", "val/nats_per_token_avg", x="flops"),
                lines("held-out nat/token of the last scale", "val/nats_per_token_last"),
                lines("training nat/token", "train/nats_per_token_avg"),
                lines("held-out token error", "val/error_avg"),
            ],
            is_open=True,
        ),
        ws.Section(
            name="Size",
            panels=[
                sizes("loss by size", "val_nats_per_token_avg"),
                sizes("last scale by size", "val_nats_per_token_last"),
                sizes("loss by compute", "val_nats_per_token_avg", x="flops_train"),
            ],
            is_open=True,
        ),
        ws.Section(
            name="Scales",
            panels=[lines(f"nat/token, scale {k} ({h} x {w})", f"val/nats_per_token_{k}") for k, (_, h, w) in
                    enumerate(scales)],
        ),
        ws.Section(
            name="Health and speed",
            panels=[
                lines("gradient norm", "train/grad_norm_mean", "train/grad_norm_max"),
                lines("loss spikes", "train/loss_spikes", log=False),
                lines("images/s", "train/images_per_s", log=False),
                sizes("model FLOPs utilisation", "mfu"),
            ],
        ),
        ws.Section(name="Images", panels=[wr.MediaBrowser(media_keys=["samples", "reconstructions"])]),
    ]  # fmt: skip
    return ws.Workspace(
        entity=entity,
        project=cfg.logger.project,
        name=f"{cfg.study}: {cfg.dashboard.name}",
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="tokens_seen"),
        runset_settings=ws.RunsetSettings(filters=[ws.Metric("Group") == cfg.study]),
    )


def save(made: Any) -> str:
    """Save the workspace on the server. Returns its address."""
    try:
        return f"created: {made.save().url}"
    except Exception as error:
        raise DashboardError(
            f"W&B did not take the workspace of {made.entity}/{made.project} ({error}); check the network, that the "
            "project exists (a run with logger.mode=online creates it) and that you may write there"
        ) from error


def _packages() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError:
        raise DashboardError("varscale dashboard needs pip install 'varscale[dashboard]'") from None
    return ws, wr
