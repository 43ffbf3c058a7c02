"""Images with labels behind one interface, and the protocols that split their classes.

An `ImageDataset` holds uint8 RGB images (an array, or read one by one when they are asked for), int32
labels and class names. `load_dataset` gives one for CIFAR-10, CIFAR-100 and TinyImageNet, through
tensorflow-datasets without TensorFlow, and for a folder of images per class. `load_protocol` gives the
splits of its classes into normal and anomalous ones that a benchmark evaluates.
"""

from bliss_jax.datasets.decode import UnreadableImageError as UnreadableImageError
from bliss_jax.datasets.image_dataset import ImageDataset as ImageDataset
from bliss_jax.datasets.load import dataset_names as dataset_names
from bliss_jax.datasets.load import load_dataset as load_dataset
from bliss_jax.datasets.splits import Protocol as Protocol
from bliss_jax.datasets.splits import Split as Split
from bliss_jax.datasets.splits import load_protocol as load_protocol
from bliss_jax.datasets.splits import protocol_names as protocol_names
