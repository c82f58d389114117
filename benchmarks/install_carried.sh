# Puts carried programs where the sandbox finds them, on a machine without a registry: sh install_carried.sh FOLDER/tools
# What is there already is left alone; libraries are added only where a program misses them.
set -e
here=$(cd "$1" && pwd)
(cd "$here" && find usr -type f) | while read -r file; do
  [ -e "/$file" ] || install -D -m 755 "$here/$file" "/$file"
done
(cd "$here" && find usr -type f) | while read -r file; do
  for lib in $(ldd "/$file" 2>/dev/null | awk '/not found/ {print $1}'); do
    mkdir -p /usr/local/lib/carried && cp -n "$here/libs/$lib" /usr/local/lib/carried/
    echo /usr/local/lib/carried > /etc/ld.so.conf.d/zz-carried.conf && ldconfig
  done
done
# the sandbox's user must be able to start a Python, and sees only /usr
if [ ! -e /usr/bin/python3 ]; then
  cp -r "$(python3 -c 'import sys; print(sys.base_prefix)')" /usr/local/carried-python
  chmod -R a+rX /usr/local/carried-python && ln -s /usr/local/carried-python/bin/python3 /usr/bin/python3
fi
