from __future__ import annotations

from pathlib import Path

import pytest

from shardload.memory.cgroups import (
    VERSION_1,
    VERSION_2,
    GroupMemory,
    Mount,
    group_below,
    limited_groups,
    parse_cache,
    parse_limit,
    parse_membership,
    parse_mounts,
)

MOUNTS_1 = """\
25 30 0:23 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
33 25 0:28 / /sys/fs/cgroup/memory rw,relatime shared:16 - cgroup cgroup rw,memory
34 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:17 - cgroup cgroup rw,cpu,cpuacct
"""
MOUNTS_2 = "29 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_membership() -> None:
    assert parse_membership("9:name=systemd:/a\n4:memory:/b:c\n3:cpu,cpuacct:/\n0::/d\n\nodd\n") == {
        "name=systemd": "/a",
        "memory": "/b:c",
        "cpu": "/",
        "cpuacct": "/",
        "": "/d",
    }


def test_mounts() -> None:
    assert parse_mounts(MOUNTS_1) == [Mount("/", "/sys/fs/cgroup/memory", VERSION_1)]
    assert parse_mounts(MOUNTS_2) == [Mount("/", "/sys/fs/cgroup", VERSION_2)]
    assert parse_mounts(r"1 2 0:3 /a\040b /c\134d rw - cgroup2 x rw") == [Mount("/a b", "/c\\d", VERSION_2)]
    assert parse_mounts("nonsense\n\n1 2 - \n") == []


@pytest.mark.parametrize(
    ("text", "limit"),
    [("max\n", None), ("1073741824\n", 2**30), ("9223372036854771712\n", None), ("", None), ("-1", None)],
)
def test_limits(text: str, limit: int | None) -> None:
    assert parse_limit(text) == limit


def test_cache() -> None:
    text = "anon 5\nactive_file 30\ninactive_file 12\nfile 99\nodd\ninactive_file x\n"
    assert parse_cache(text, VERSION_2.cache_keys) == 42


@pytest.mark.parametrize(
    ("root", "group", "below"),
    [
        ("/", "/", ""),
        ("/", "/a/b", "a/b"),
        ("/", "/../../x", ""),
        ("/docker/abc", "/docker/abc", ""),
        ("/docker/abc", "/docker/abc/inner", "inner"),
        ("/docker/abc", "/docker/abcdef", ""),
        ("/docker/abc", "/", ""),
    ],
)
def test_group_below_a_mount(root: str, group: str, below: str) -> None:
    assert group_below(Mount(root, "/sys/fs/cgroup", VERSION_2), group) == below


def test_available() -> None:
    assert GroupMemory(100, 70, 50).available_bytes == 80
    assert GroupMemory(100, 150, 10).available_bytes == 0
    assert GroupMemory(100, 20, 50).available_bytes == 100


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_version_2_reads_the_group_and_those_around_it(tmp_path: Path) -> None:
    base = "sys/fs/cgroup"
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/app\n",
            "proc/self/mountinfo": MOUNTS_2,
            f"{base}/memory.stat": "active_file 1\n",
            f"{base}/user.slice/memory.max": "5000\n",
            f"{base}/user.slice/memory.current": "4000\n",
            f"{base}/user.slice/memory.stat": "active_file 300\ninactive_file 200\n",
            f"{base}/user.slice/app/memory.max": "max\n",
            f"{base}/user.slice/app/memory.current": "100\n",
        },
    )
    assert limited_groups(root) == [GroupMemory(5000, 4000, 500)]


def test_version_1(tmp_path: Path) -> None:
    base = "sys/fs/cgroup/memory"
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/job\n0::/\n",
            "proc/self/mountinfo": MOUNTS_1,
            f"{base}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{base}/memory.usage_in_bytes": "77\n",
            f"{base}/job/memory.limit_in_bytes": "3000\n",
            f"{base}/job/memory.usage_in_bytes": "1000\n",
            f"{base}/job/memory.stat": "inactive_file 1\ntotal_inactive_file 600\ntotal_active_file 100\n",
        },
    )
    assert limited_groups(root) == [GroupMemory(3000, 1000, 700)]


def test_container_that_sees_its_group_as_the_root(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": MOUNTS_2,
            "sys/fs/cgroup/memory.max": "4096\n",
            "sys/fs/cgroup/memory.current": "1024\n",
        },
    )
    assert limited_groups(root) == [GroupMemory(4096, 1024, 0)]


def test_no_groups_at_all(tmp_path: Path) -> None:
    assert limited_groups(tmp_path) == []
