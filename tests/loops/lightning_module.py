"""A Lightning module, whose optimizer runs the model within its step."""

import lightning.pytorch as pl
import open_clip
import torch

import flowsim as fs

tower = {"layers": 1, "width": 32}
vision = {**tower, "image_size": 16, "patch_size": 8, "head_width": 16}
pairs = torch.utils.data.TensorDataset(torch.randn(160, 3, 16, 16), torch.randint(1, 50, (160, 8)))
loader = torch.utils.data.DataLoader(pairs, batch_size=8)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.clip = open_clip.CLIP(16, vision, {**tower, "heads": 2, "context_length": 8, "vocab_size": 50})

    def training_step(self, batch, index):
        return open_clip.ClipLoss()(*self.clip(*batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.1)


# --- what flowsim adds
module = Module()
controller = fs.torch.TemperatureController(module.clip.logit_scale, "TR softplus", total_steps=20)
monitor = fs.torch.GapMonitor(every=5, to="run.nc", controller=controller).watch(module.clip)
callback = fs.torch.lightning_callback(controller, monitor)
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[callback])
trainer.fit(module, loader)
