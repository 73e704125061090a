#!/bin/sh
# Certificates for TLS between client, scheduler and workers of Dask.
#
#   make_certificates.sh DIR [DAYS]
#
# DIR gets ca.pem, cert.pem and key.pem, which all of them share, and ca.key, which signs: keep that one elsewhere. A
# second call makes a new cert.pem and key.pem of the same authority, if ca.key is there. Needs OpenSSL 3.
set -eu
umask 077
mkdir -p "$1"
cd "$1"
days=${2:-365}
curve="ec -pkeyopt ec_paramgen_curve:P-256"
if [ ! -e ca.pem ]; then
  openssl req -x509 -newkey $curve -nodes -days 3650 -subj "/CN=eelsflow Dask authority" -keyout ca.key -out ca.pem
fi
# CA:FALSE: who has the key can join the cluster, and admit nobody else.
openssl req -new -newkey $curve -nodes -subj "/CN=eelsflow Dask" -addext "basicConstraints=critical,CA:FALSE" \
  -keyout key.pem -out cert.csr
openssl x509 -req -in cert.csr -CA ca.pem -CAkey ca.key -CAcreateserial -copy_extensions copy -days "$days" -out cert.pem
rm cert.csr
