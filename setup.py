"""Package data of mmprune: ranges here, exact pins in requirements.lock."""

import re
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Returns the version without importing mmprune, which needs torch."""
    text = (ROOT / 'mmprune' / 'version.py').read_text()
    return re.search(r"__version__ = '([^']+)'", text).group(1)


def openmmlab_requirements() -> list[str]:
    """Returns mmengine and mmcv-lite, less what is there in another form.

    mmcv-lite, a full mmcv and onedl-mmcv all own the folder ``mmcv``: a fixed
    requirement on mmcv-lite would overwrite the compiled mmcv of somebody who
    has one, and one on mmcv would start a compiler where no wheel exists. The
    site folder is asked rather than ``import mmcv``, because pip builds in
    isolation.
    """
    site = {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}
    found = distributions(path=sorted(site))
    names = {str(item.metadata['Name']).lower() for item in found}
    wanted = {
        'mmengine>=0.10.5,<1.0': {'onedl-mmengine'},
        'mmcv-lite>=2.0.1,<2.2': {'mmcv', 'onedl-mmcv'},
    }
    return [asked for asked, other in wanted.items() if not names & other]


EXTRAS = {
    # OpenCV 4.12 and later need NumPy 2, which nuscenes-devkit excludes.
    'vad': [
        'mmdet>=3.3,<3.4',
        'mmdet3d>=1.4,<1.5',
        'nuscenes-devkit>=1.1.11',
        'opencv-python<4.12',
        'opencv-python-headless<4.12',
        'shapely>=2.0',
    ],
    'vit': ['timm>=1.0.20', 'scikit-learn>=1.3'],
    'llm': [
        'accelerate>=1.0',
        'peft>=0.14',
        'safetensors>=0.4',
        'torchao>=0.9',
        'transformers>=5.0',
    ],
    'export': ['onnx>=1.16', 'onnxruntime>=1.18'],
    'dev': [
        'codespell>=2.3',
        'pytest>=8.0',
        'pytest-cov>=5.0',
        'pytest-xdist>=3.6',
        'ruff>=0.9',
    ],
}

setup(
    name='mmprune',
    version=read_version(),
    description='Prune OpenMMLab and other PyTorch models into smaller ones',
    license='Apache-2.0',
    python_requires='>=3.10,<3.13',
    packages=[
        *find_packages(include=['mmprune', 'mmprune.*']),
        *find_namespace_packages(
            include=['projects.VAD', 'projects.VAD.*'],
            exclude=['*.__pycache__', '*.__pycache__.*'],
        ),
    ],
    package_data={'mmprune.run.report_html': ['*.j2']},
    # torch 2.5 brought the scoped allow-list that safe loading rests on.
    install_requires=[
        'torch>=2.5',
        'torchvision>=0.20',
        'numpy>=1.24',
        'scipy>=1.10',
        'torch-pruning>=1.6,<2.0',
        *openmmlab_requirements(),
    ],
    extras_require=EXTRAS,
)
