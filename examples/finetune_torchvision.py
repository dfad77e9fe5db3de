"""Fine-tunes torchvision's Faster R-CNN on your own data with a ranking loss.

python examples/finetune_torchvision.py coco FOLDER train2017    # or: voc VOC2007 trainval
"""

import sys

import torch
from torch.utils.data import DataLoader
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

from concordet.data import collate, load_dataset, train_transforms
from concordet.detectors import install, installed_criterion


def finetune(model, data, loss, *, epochs=12, batch_size=4, lr=0.005):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    install(model.to(device).train(), loss)
    loader = DataLoader(data, batch_size, shuffle=True, collate_fn=collate, num_workers=2)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr, 0.9, weight_decay=1e-4)
    for epoch in range(epochs):
        for images, targets in loader:
            targets = [{k: t[k].to(device) for k in ("boxes", "labels")} for t in targets]
            losses = model([image.to(device) for image in images], targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
        installed_criterion(model).on_epoch_end()  # updates the balance of aLRP; other losses have no state
        print(epoch, {name: round(value.item(), 3) for name, value in losses.items()})


if __name__ == "__main__":
    layout, folder, split = sys.argv[1:]
    data = load_dataset(layout, root=folder, split=split, transforms=train_transforms())
    model = detection.fasterrcnn_resnet50_fpn(weights="DEFAULT")
    width = model.roi_heads.box_predictor.cls_score.in_features
    model.roi_heads.box_predictor = FastRCNNPredictor(width, len(data.class_names) + 1)
    finetune(model, data, "rank_sort")
    torch.save(model.state_dict(), "finetuned.pt")  # the same keys as without the loss
