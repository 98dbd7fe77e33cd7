#!/bin/sh -e
# How the batch beside this note was made: version 1.0.0 ran it, in a directory of its own, and was interrupted; then
# the paths and the name of the machine were taken out. To make it anew: sh tests/batch_1_0_0/make.sh
here=$(cd "$(dirname "$0")" && pwd)
place=$(mktemp -d)
cd "$place"
git -C "$here" show 96de62f:run_experiments.py > run_experiments.py
cp -r "$here/train_run.py" "$here/configs" "$here/../configurator.py" .
python3 run_experiments.py --configs configs/broken.py configs/done.py configs/stopped.py configs/later.py &
until [ -e experiments/latest/stopped/ckpt_10.pt ] && grep -q 'step 10' experiments/latest/stopped/stdout.log; do
    sleep 0.1
done
kill -TERM $!
wait $! || true
rm -rf "$here/experiments"
mkdir "$here/experiments"
mv experiments/experiment_* "$here/experiments/experiment_20240128_143022"
rm "$here"/experiments/*/report.html "$here"/experiments/*/runner.lock  # the one is large, the other of no use
cd "$here/experiments"
python=$(python3 -c "import os, sys; print(os.path.realpath(sys.executable)); print(sys.executable)" | sort -u)
find . -type f | while read -r file; do
    for path in $python; do sed -i "s#$path#/usr/bin/python3#g" "$file"; done
    sed -i "s#$place#/somewhere#g; s#$(hostname)#somewhere#g; s#experiment_20[0-9]*_[0-9]*#experiment_20240128_143022#g" "$file"
done
