#!/usr/bin/env bash
# Build the extensions for aarch64 and run the kernels' tests under emulation: packaging/aarch64.sh [PYTEST ARGUMENTS]
#
# On Debian, as root or with the packages already there. Everything is made in out/aarch64.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/out/aarch64
version=$(. /etc/os-release && [ "$VERSION_ID" = 12 ] && echo 3.11 || echo 3.13)  # Debian's own Python
headers=$out/root/usr/include

if [ ! -e "$out/site/numpy" ]; then
    dpkg --add-architecture arm64
    apt-get update -q
    apt-get install -q -y --no-install-recommends qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross
    mkdir -p "$out/debs" "$out/wheels" "$out/root" "$out/site"
    chmod 777 "$out/debs"
    packages=(python$version python$version-minimal libpython$version-minimal libpython$version-stdlib libpython$version-dev
        libc6 libgcc-s1 libstdc++6 libexpat1 zlib1g libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libcrypt1)
    (cd "$out/debs" && apt-get download -q "${packages[@]/%/:arm64}")
    for package in "$out"/debs/*.deb; do dpkg -x "$package" "$out/root"; done
    python3 -m pip download -q --only-binary :all: --python-version "$version" --platform manylinux_2_28_aarch64 \
        --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 -d "$out/wheels" numpy scipy pytest hypothesis
    for wheel in "$out"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$out/site"; done
fi

rm -rf "$out/tree"
mkdir "$out/tree"
cp -r pyclattn tests pyproject.toml "$out/tree"
cd "$out/tree/pyclattn/_ext"
rm -f ./*.so
flags=(-std=gnu11 -O3 -ffp-contract=fast -fno-math-errno -fvisibility=hidden -fPIC -shared -w)
for source in *.pyx; do
    name=${source%.pyx}
    case $name in
        isa) tiles=(lanes_*.c) ;;
        int8) tiles=(int8_*.c) ;;
        rows) tiles=(rows_*.c) ;;
        *) tiles=() ;;
    esac
    "${CYTHON:-cython}" -3 -X boundscheck=False -X wraparound=False -X initializedcheck=False -X cdivision=True "$source"
    aarch64-linux-gnu-gcc "${flags[@]}" -I "$headers" -I "$headers/python$version" "$name.c" "${tiles[@]}" \
        -o "$name.cpython-${version/./}-aarch64-linux-gnu.so" -lm
done

cd "$out/tree"
[ $# -gt 0 ] || set -- tests/test_kernels.py tests/test_kernels_int8.py tests/test_kernels_cast.py \
    tests/test_kernels_centroid.py tests/test_kernels_coclusters.py
PYTHONPATH=$out/site:$out/tree exec qemu-aarch64-static -L "$out/root" "$out/root/usr/bin/python$version" \
    -m pytest -p no:cacheprovider "$@"
