"""A plain loop with a model and the loss of open_clip."""

import open_clip
import torch

import flowsim as fs

tower = {"layers": 1, "width": 32}
vision = {**tower, "image_size": 16, "patch_size": 8, "head_width": 16}
model = open_clip.CLIP(16, vision, {**tower, "heads": 2, "context_length": 8, "vocab_size": 50})
loader = [(torch.randn(8, 3, 16, 16), torch.randint(1, 50, (8, 8))) for _ in range(20)]
loss_of = open_clip.ClipLoss()

# --- the loop
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
controller = fs.torch.TemperatureController(model.logit_scale, "HS 1e-1", total_steps=20).attach(optimizer)
with fs.torch.GapMonitor(every=5, to="run.nc", controller=controller) as monitor:
    for images, texts in loader:
        image, text, beta = model(images, texts)
        loss = loss_of(*controller.swap(image, text), beta)
        monitor(image, text, loss=loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
