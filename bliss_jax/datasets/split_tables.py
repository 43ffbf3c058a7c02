"""The published splits, as class ids.

`zoc`: Esmaeilpour, Liu, Robertson, Shu, "Zero-shot out-of-distribution detection based on the pre-trained
model CLIP", AAAI 2022 (https://github.com/sesmae/ZOC), used by BLISS.
`cac`: Miller, Sünderhauf, Milford, Dayoub, "Class anchor clustering", WACV 2021
(https://github.com/dimitymiller/cac-openset), the current files of the repository.

Ids are positions in the class names of the data set: the official order of CIFAR-10, the alphabetically
sorted fine labels of CIFAR-100, the sorted wnids of TinyImageNet. Each row is one split. Rows list the
normal classes, except those of CIFAR+10 and CIFAR+50, which list the anomalous CIFAR-100 classes.
"""

Rows = tuple[tuple[int, ...], ...]

CIFAR10_ZOC: Rows = (
    (0, 1, 9, 7, 3, 2),
    (0, 2, 4, 3, 7, 5),
    (5, 1, 9, 8, 7, 0),
    (5, 7, 1, 8, 4, 6),
    (8, 1, 5, 3, 4, 6),
)
CIFAR10_CAC: Rows = (
    (0, 1, 2, 4, 5, 9),
    (0, 3, 5, 7, 8, 9),
    (0, 1, 5, 6, 7, 8),
    (3, 4, 5, 7, 8, 9),
    (0, 1, 2, 3, 7, 8),
)

CIFAR100_ZOC: Rows = tuple(tuple(range(start, start + 20)) for start in range(0, 100, 20))

# fmt: off
TINY_IMAGENET_ZOC: Rows = (
    (192, 112, 145, 107, 91, 180, 144, 193, 10, 125, 186, 28, 72, 124, 54, 77, 157, 169, 104, 166),
    (156, 157, 167, 175, 153, 11, 147, 0, 199, 171, 132, 60, 87, 190, 101, 111, 193, 71, 131, 192),
    (28, 15, 103, 33, 90, 167, 61, 13, 124, 159, 49, 12, 54, 78, 82, 107, 80, 25, 140, 46),
    (128, 132, 123, 72, 154, 35, 86, 10, 188, 28, 85, 89, 91, 82, 116, 65, 96, 41, 134, 25),
    (102, 79, 47, 106, 59, 93, 145, 10, 62, 175, 76, 183, 48, 130, 38, 186, 44, 8, 29, 26),
)

CIFAR_PLUS_NORMAL = (0, 1, 8, 9)
"""Normal classes of every CIFAR+10 and CIFAR+50 split: the vehicles of CIFAR-10."""

CIFAR_PLUS_50_ZOC: Rows = (
    (4, 30, 55, 72, 95, 1, 32, 67, 73, 91, 6, 7, 14, 18, 24, 3, 42, 43, 88, 97, 15, 19, 21, 31, 38,
     34, 63, 64, 66, 75, 26, 45, 77, 79, 99, 2, 11, 35, 46, 98, 27, 29, 44, 78, 93, 36, 50, 65, 74, 80),
)
# fmt: on
CIFAR_PLUS_10_ZOC: Rows = (
    (43, 36, 24, 18, 80, 98, 30, 93, 78, 3),
    (74, 91, 98, 79, 50, 66, 24, 26, 6, 42),
    (79, 63, 36, 4, 29, 55, 75, 46, 72, 38),
    (95, 93, 26, 43, 36, 27, 18, 30, 64, 32),
    (88, 18, 19, 24, 65, 50, 4, 93, 35, 46),
)
CIFAR_PLUS_10_CAC: Rows = (
    (31, 65, 45, 98, 77, 93, 34, 63, 26, 44),
    (11, 97, 98, 75, 66, 77, 95, 99, 93, 7),
    (11, 24, 15, 95, 93, 34, 32, 88, 63, 2),
    (11, 1, 64, 42, 45, 38, 66, 67, 63, 44),
    (19, 42, 21, 78, 98, 72, 15, 46, 66, 3),
)
