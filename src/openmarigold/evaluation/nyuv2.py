# SPDX-License-Identifier: Apache-2.0
"""NYU Depth v2's labeled set in its official file, `nyu_depth_v2_labeled.mat`: HDF5 inside. Needs the extra `data`.

MATLAB stores the last axis first, so HDF5 shows `images` as [n, 3, w, h] and `rawDepths` as [n, w, h]; `scenes` is a
list of references to strings of 16-bit characters. Image k of MATLAB is row k - 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from openmarigold.data.arrays import Hdf5Archive, hdf5_dataset
from openmarigold.errors import DataError, needs_extra, one_line

MAT_NAME = "nyu_depth_v2_labeled.mat"
NUM_LABELED = 1449
_LONGEST_NAME = 1000
# Numbers, from 1, of the 654 images of the official test split, which Eigen et al. 2014 evaluate on.
TEST_SPLIT = """
1-2 9 14-18 21 28-43 46-47 56-57 59-63 76-79 84-91 117-119 125-129 131-134 137 153-155 167-169 171-176 180-202 207-212
220-222 250 264 271-273 279-285 296-302 310-312 315-317 325-335 351-352 355-364 384-390 395-397 411-414 430-435 441-448
462-466 469-477 508-513 515-526 531-533 537-539 549-551 555-571 579-583 591-594 603-607 612-613 617-621 633-638 644-645
650-651 656-658 663-664 668-673 676-681 686-690 693-694 697-699 706-713 717-718 724-728 731-734 743-744 759-787 800-804
810-814 821-823 833-846 850-852 857-862 869-871 906-908 917-919 926-928 932-935 945-947 959-962 965-967 970-977 991-995
1001-1004 1010-1012 1021-1023 1032-1034 1038-1039 1048-1049 1052-1053 1057-1058 1075-1084 1088-1096 1098-1104 1106-1109
1117-1119 1123-1131 1135-1136 1144-1158 1162-1167 1170-1171 1174-1176 1179-1184 1192-1196 1201-1212 1216-1220 1226-1230
1233-1235 1247-1250 1254-1265 1275-1280 1285-1295 1297-1299 1302-1308 1314-1315 1329-1332 1335-1340 1347-1349 1353-1356
1364-1365 1368-1369 1384-1391 1394-1401 1407-1414 1421-1424 1430-1433 1441-1449
"""


def split_numbers(split: str) -> list[int]:
    """Numbers, from 1, of the labeled images of "test" or "train".

    >>> len(split_numbers("test")), len(split_numbers("train"))
    (654, 795)
    """
    test: set[int] = set()
    for part in TEST_SPLIT.split():
        first, _, last = part.partition("-")
        test.update(range(int(first), int(last or first) + 1))
    return sorted(test if split == "test" else set(range(1, NUM_LABELED + 1)) - test)


def open_mat(path: Path) -> Hdf5Archive:
    """The labeled set's images as files `<split>/<scene>/rgb_0001.npy` and `.../depth_0001.npy` (uint8; float32 [m]).

    Depth is `rawDepths`, what the sensor measured (0 = nothing), not the in-painted `depths`.

    Raises:
        MissingExtraError: h5py is not installed.
        DataError: the file is damaged or another one.
    """
    with needs_extra("data"):
        import h5py
    try:
        file = h5py.File(path, "r")
        images, depths = (hdf5_dataset(file, name) for name in ("images", "rawDepths"))
        scenes = hdf5_dataset(file, "scenes", kinds="O")
        count, colors, width, height = images.shape
        references = np.asarray(scenes).reshape(-1)
        if colors != 3 or depths.shape != (count, width, height) or len(references) != count:
            raise DataError(f"{path}: images, rawDepths and scenes do not belong together; get it again")
        names = [_text(file[reference]) for reference in references]
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not the labeled set of NYU Depth v2 ({one_line(error)}); get it again") from error
    rows: dict[str, Any] = {}
    for split in ("test", "train"):
        for number in split_numbers(split):
            if number <= count:
                folder, row = f"{split}/{names[number - 1]}", number - 1
                rows[f"{folder}/rgb_{number:04d}.npy"] = images, row, lambda values: values.transpose(2, 1, 0)
                rows[f"{folder}/depth_{number:04d}.npy"] = depths, row, lambda values: values.T.astype(np.float32)
    return Hdf5Archive(path, rows)


def _text(target: Any) -> str:
    if target.dtype.kind not in "ui" or target.size > _LONGEST_NAME or target.external or target.is_virtual:
        raise ValueError("the name of a scene is not a text")
    return "".join(map(chr, np.asarray(target).reshape(-1)))
