#!/bin/sh
# The tests about files, with their files on overlayfs and then on a tmpfs: in mount namespaces of their own, so nothing is left behind.
# As another user than root it needs user namespaces; the tests then run as that user all the same.
set -eu
cd "$(dirname "$0")/.."
tests=${TESTS:-file_input file_input_v2 file_model file_model_v2 rotation_matrix}
# shellcheck disable=SC2086 # words
programs=$(${CARGO:-cargo} test --locked --no-run $(printf ' --test %s' $tests) 2>&1 | tee /dev/stderr |
    sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
test -n "$programs"

place=$(mktemp -d)
trap 'rmdir "$place"' EXIT
if [ "$(id -u)" = 0 ]; then
    outside='unshare --mount' inside=''
else
    outside='unshare --user --map-root-user --mount' inside="unshare --user --map-user=$(id -u) --map-group=$(id -g)"
fi
export PLACE="$place"
for kind in overlay tmpfs; do
    echo "# on $kind"
    for program in $programs; do
        # shellcheck disable=SC2016,SC2086 # expanded inside; words
        $outside sh -euc '
            kind=$1; shift
            mount -t tmpfs tmpfs "$PLACE"
            mkdir "$PLACE/lower" "$PLACE/upper" "$PLACE/work" "$PLACE/t"
            if [ $kind = overlay ]; then
                mount -t overlay overlay -o "lowerdir=$PLACE/lower,upperdir=$PLACE/upper,workdir=$PLACE/work" "$PLACE/t"
            fi
            chmod 1777 "$PLACE" "$PLACE/t"
            export TMPDIR="$PLACE/t"
            exec "$@"' sh "$kind" $inside "$PWD/$program" ${ARGS:-}
    done
done
