"""Fine-tunes a set predictor of Transformers on your own data with a ranking loss, using its Trainer.

python examples/finetune_transformers.py PekingU/rtdetr_r50vd coco FOLDER train2017    # or: voc VOC2007 trainval
"""

import sys

from torchvision.ops import box_convert
from transformers import AutoImageProcessor, AutoModelForObjectDetection, Trainer, TrainingArguments

from concordet.data import load_dataset, train_transforms
from concordet.detectors import install


def annotations(target):
    """One image's objects as Transformers' processors take them; their labels start at 0."""
    boxes = box_convert(target["boxes"], "xyxy", "xywh").tolist()
    objects = [
        {"bbox": box, "category_id": label - 1, "area": box[2] * box[3], "iscrowd": 0}
        for box, label in zip(boxes, target["labels"].tolist(), strict=True)
    ]
    return {"image_id": target["image_id"], "annotations": objects}


def finetune(model, processor, data, loss, **settings):
    def collate(examples):
        images, targets = zip(*examples, strict=True)
        objects = [annotations(target) for target in targets]
        return dict(processor(list(images), objects, do_rescale=False, return_tensors="pt"))

    install(model, loss)
    arguments = TrainingArguments(output_dir="finetuned", remove_unused_columns=False, **settings)
    Trainer(model, arguments, collate, data).train()


if __name__ == "__main__":
    checkpoint, layout, folder, split = sys.argv[1:]
    data = load_dataset(layout, root=folder, split=split, transforms=train_transforms())
    names = dict(enumerate(data.class_names))
    model = AutoModelForObjectDetection.from_pretrained(checkpoint, id2label=names, ignore_mismatched_sizes=True)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    finetune(model, processor, data, "rank_sort", num_train_epochs=12, learning_rate=5e-5, max_grad_norm=0.1)
    model.save_pretrained("finetuned")  # the same keys as without the loss
    processor.save_pretrained("finetuned")
