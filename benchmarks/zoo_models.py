"""The models of the zoo as data: what builds each one, the batch and loss that its family takes, and where its head is.

A model of a library is a few overrides of the config. What a whole family shares stands in a rule; the pictures are the
smallest that an architecture takes, so that a step is short. Weights are random: nothing is downloaded. Batches have two
samples, because BatchNorm cannot normalise one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        library: where it comes from: torchvision, timm, transformers or peft.
        model: its name in the table, distinct within the library.
        overrides: what builds it, its data and its task.
        heads: the modules that a person would call its head, a `*` for each number; empty where the library tells (timm).
    """

    library: str
    model: str
    overrides: tuple[str, ...]
    heads: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name by which `--only` finds it, such as `timm/resnet10t`."""
        return f"{self.library}/{self.model}"


# By `KIND/NAME`; all that match apply, in this order.
TORCHVISION = {
    "*": ("model=torchvision", "model.classes=10", "data.batch_size=2"),
    "models/*": ("model.input=[3,32,32]",),
    "models/alexnet": ("model.input=[3,64,64]",),
    "models/googlenet": ("++model.init_weights=false", "task.outputs={logits: 1, aux_logits2: 0.3, aux_logits1: 0.3}"),
    "models/inception_v3": (
        *("model.input=[3,299,299]", "++model.init_weights=false"),
        "task.outputs={logits: 1, aux_logits: 0.4}",
    ),
    "models/maxvit_t": ("model.input=[3,224,224]",),
    "models/vit_[bl]_*": ("++model.image_size=32",),
    "models/vit_h_14": ("model.input=[3,28,28]", "++model.image_size=28"),
    "video/*": ("model.input=[3,8,32,32]",),
    "video/mvit_*": ("model.input=[3,16,224,224]",),
    "video/s3d": ("model.input=[3,14,224,224]",),
    "segmentation/*": ("data=masks", "task=segmentation"),
    "segmentation/deeplabv3_*": ("++model.aux_loss=true",),
    "segmentation/fcn_*": ("++model.aux_loss=true",),
    "segmentation/lraspp_*": ("task.outputs={out: 1}",),
    "detection/*": ("data=boxes", "task=detection", "model.input=[3,64,64]"),
    "detection/[!s]*": ("++model.min_size=64", "++model.max_size=64"),
    "detection/maskrcnn_*": ("data.masks=true",),
    "detection/keypointrcnn_*": ("model.classes=2", "data.keypoints=17"),
}
RPN, BOXES = "rpn.head.cls_logits|rpn.head.bbox_pred|", "roi_heads.box_predictor.cls_score|roi_heads.box_predictor.bbox_pred"
ANCHORS = "head.classification_head.cls_logits|head.regression_head.bbox_reg"
SSD = "head.classification_head.module_list.*|head.regression_head.module_list.*"
# By `KIND/NAME`; the last that matches.
TORCHVISION_HEADS = {
    "models/*": "fc",
    "models/alexnet": "classifier.6",
    "models/convnext_*": "classifier.2",
    "models/densenet*": "classifier",
    "models/efficientnet_*": "classifier.1",
    "models/googlenet": "aux1.fc2|aux2.fc2|fc",
    "models/inception_v3": "AuxLogits.fc|fc",
    "models/maxvit_t": "classifier.5",
    "models/mnasnet*": "classifier.1",
    "models/mobilenet_v2": "classifier.1",
    "models/mobilenet_v3_*": "classifier.3",
    "models/squeezenet*": "classifier.1",
    "models/swin_*": "head",
    "models/vgg*": "classifier.6",
    "models/vit_*": "heads.head",
    "video/*": "fc",
    "video/mvit_*": "head.1",
    "video/s3d": "classifier.1",
    "video/swin3d_*": "head",
    "segmentation/*": "aux_classifier.4|classifier.4",
    "segmentation/lraspp_*": "classifier.high_classifier|classifier.low_classifier",
    "detection/*rcnn_*": RPN + BOXES,
    "detection/maskrcnn_*": f"{RPN}{BOXES}|roi_heads.mask_predictor.mask_fcn_logits",
    "detection/keypointrcnn_*": f"{RPN}{BOXES}|roi_heads.keypoint_predictor.kps_score_lowres",
    "detection/fcos_*": f"{ANCHORS}|head.regression_head.bbox_ctrness",
    "detection/retinanet_*": ANCHORS,
    "detection/ssd300_*": SSD,
    "detection/ssdlite320_*": SSD.replace("*", "*.1"),
}

# A hundred architectures, the smallest of nearly every file in timm.models. (size of the pictures, argument of the builder)
TIMM = {
    (32, ""): """
        caformer_s18 convmixer_768_32 convnext_atto_rms cpubone_nano crossvit_tiny_240 cs3darknet_focus_s cspnext_tiny
        davit_tiny densenet121 dla46x_c dpn48b edgenext_xx_small efficientvim_m1 efficientvit_b0 efficientvit_m0
        ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8 focalnet_tiny_srf gemma4_vit_167m ghostnet_050 hardcorenas_b
        hgnetv2_b0 hrnet_w18_small iformer_t inception_next_atto lcnetv2_small legacy_seresnet18 legacy_xception
        lowformer_b0 mambaout_femto mobilenetv2_035 mobilenetv3_small_050 mobilenetv5_base mobileone_s1 mobilevit_xxs
        mvitv2_tiny naflexvit_base_patch16_gap nasnetalarge nextvit_small nf_regnet_b0 pnasnet5large poolformerv2_s12
        pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnet10t
        resnetv2_18 rexnet_100 sam2_hiera_tiny samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s1 skresnet18
        starnet_s050 swiftformer_xs tiny_vit_5m_224 tresnet_m twins_svt_small vgg11 vit_tiny_patch16_dinov3_qkvb
        xception41p xcit_nano_12_p8_224""",
    (32, "++model.img_size=32"): """
        beit_base_patch16_224 cait_xxs24_224 coat_tiny coatnet_pico_rw_224 convit_tiny deit_tiny_distilled_patch16_224
        deit_tiny_patch16_224 efficientformerv2_s0 gcvit_xxtiny gmlp_ti16_224 hiera_tiny_224 levit_128s
        maxvit_pico_rw_256 nest_tiny pit_ti_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256
        tnt_s_legacy_patch16_224 visformer_tiny vit_srelpos_small_patch16_224 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224
        vitamin_small_224 volo_d1_224""",
    (64, ""): "csatv2",
    (96, ""): "inception_resnet_v2 inception_v3 inception_v4",
    (224, ""): "efficientformer_l1",
    (256, ""): "halonet_h1",
}
TIMM_HEADS = {"volo_d1_224": ("aux_head", "head")}  # `get_classifier` names the main one alone; in training both are used


def torchvision_entries() -> Iterator[Entry]:
    """Yield an entry for each model that torchvision lists for a task."""
    from torchvision import models

    kinds = {"models": models, "video": models.video, "segmentation": models.segmentation, "detection": models.detection}
    for kind, module in kinds.items():
        for name in models.list_models(module=module):
            path = f"{kind}/{name}"
            parts = [part for pattern, part in TORCHVISION.items() if fnmatchcase(path, pattern)]
            heads = [each for pattern, each in TORCHVISION_HEADS.items() if fnmatchcase(path, pattern)][-1]
            overrides = (*(text for part in parts for text in part), f"model.name={name}")
            yield Entry("torchvision", name, overrides, tuple(heads.split("|")))


def timm_entries() -> Iterator[Entry]:
    """Yield an entry for each architecture of timm in the table."""
    for (size, argument), names in TIMM.items():
        for name in names.split():
            options = (f"model.name={name}", "model.classes=10", f"model.input=[3,{size},{size}]", "data.batch_size=2")
            yield Entry("timm", name, ("model=timm", *options, *filter(None, [argument])), TIMM_HEADS.get(name, ()))
