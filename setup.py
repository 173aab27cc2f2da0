import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = (HERE / "README.md").read_text(encoding="utf-8")
VERSION = (HERE / "gradaug_det" / "__init__.py").read_text(encoding="utf-8")
COCO = ["faster-coco-eval>=1.6", "matplotlib>=3.7"]

# `make test-matrix` installs the lower bounds, but for those of onnx, and of mmdet's fork, which
# began later than what the matrix takes.
setup(
    name="gradaug-det",
    version=re.search(r'^__version__ = "(.+)"', VERSION, flags=re.MULTILINE)[1],
    description="GradAug for Detectron2 and MMDetection: slimmable backbones and a training hook",
    # Links into the repository lead nowhere on a package index: their words stay.
    long_description=re.sub(r"!?\[([^]]*)\]\((?!https:)[^)]*\)", r"\1", README),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0 AND MIT",  # the garments are MIT
    license_files=["LICENSE", "NOTICE", "gradaug_det/mini_coco/data/LICENSE-fashion-mnist.txt"],
    keywords=["object detection", "instance segmentation", "regularization", "PyTorch"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["gradaug_det", "gradaug_det.*"]),
    package_data={
        "gradaug_det": [
            "check_data/kinds.json",
            "d2/templates/*",
            "mini_coco/data/*",
            "reports/templates/*",
            "zoo/*.j*",
        ]
    },
    install_requires=[
        "torch>=2.1",
        "torchvision>=0.16",
        "numpy>=1.23",
        "scipy>=1.10",
        "contourpy>=1.1",
        "pillow>=10.1",
        "pycocotools>=2.0.7,!=2.0.10",  # which cannot score a file without "info"
        "jinja2>=3.1",
        "safetensors>=0.4",
        "pooch>=1.8",
        "requests>=2.31",
        "tqdm>=4.66",
    ],
    extras_require={
        "coco": COCO,  # beside a framework that is there
        # Detectron2 itself is installed from its repository, or by tools/install_detectron2.py.
        "detectron2": [
            *COCO,
            "black",  # formats the dumped LazyConfigs
            "fvcore>=0.1.5.post20221221",
            "iopath>=0.1.9",
            "omegaconf>=2.3",
            "hydra-core>=1.3",
            "pyyaml>=6",
            "yacs>=0.1.8",
            "cloudpickle>=2.2",
            "tabulate>=0.9",
            "termcolor>=2.3",
            "tensorboard>=2.14",
            "setuptools>=65,<81",
        ],
        "mmdet": [
            *COCO,
            "onedl-mmengine>=0.10.12",
            "onedl-mmcv>=2.3.6",
            "onedl-mmdetection>=3.5.1",
            "packaging",
        ],
        "pretrain": ["lightning-fabric>=2.2", "omegaconf>=2.3", "pyyaml>=6", "tensorboard>=2.14"],
        "corruptions": ["imagecorruptions-imaug", "numba"],  # of `gradaug-det benchmark`
        "gdrive": ["gdown>=6.5"],  # the authors' published weights
        "onnx": ["onnx>=1.15", "onnxruntime>=1.16"],
        "docs": ["mkdocs-material", "mkdocstrings-python"],
        "dev": ["pytest", "pytest-timeout", "playwright", "ruff", "pre-commit"],
    },
    entry_points={"console_scripts": ["gradaug-det = gradaug_det.commands.cli:main"]},
)
