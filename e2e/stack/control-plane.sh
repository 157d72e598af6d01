# shellcheck shell=bash
# The control plane, as plain processes of this machine, and who may speak to it.

SERVICES=10.96.0.0/16
PKI=$DIR/pki
export KUBECONFIG=$PKI/admin.conf

# --- identities -----------------------------------------------------------------

new_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out "$PKI/$1.key" 2>/dev/null; }

certificate() { # certificate NAME SUBJECT IP
  new_key "$1"
  openssl req -new -key "$PKI/$1.key" -subj "$2" -out "$PKI/$1.csr"
  openssl x509 -req -in "$PKI/$1.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -days 365 -out "$PKI/$1.crt" \
    -extfile <(
      echo "subjectAltName=DNS:localhost,DNS:kubernetes.default.svc,DNS:kubernetes.default,IP:127.0.0.1,IP:10.96.0.1,IP:$3"
      echo "extendedKeyUsage=serverAuth,clientAuth"
    ) 2>/dev/null
}

kubeconfig() { # kubeconfig NAME USER-FIELDS: one file that needs no other
  cat >"$PKI/$1.conf" <<END
apiVersion: v1
kind: Config
clusters: [{name: corrente, cluster: {server: "https://$HOST_IP:6443", certificate-authority-data: $(base64 -w0 "$PKI/ca.crt")}}]
users: [{name: $1, user: {$2}}]
contexts: [{name: corrente, context: {cluster: corrente, user: $1}}]
current-context: corrente
END
}

token() { # token NAME USER GROUP
  local token
  token=$(openssl rand -hex 16)
  echo "$token,$2,$2,\"$3\"" >>"$PKI/tokens.csv"
  kubeconfig "$1" "token: $token"
}

identities() {
  local n
  mkdir -p "$PKI"
  new_key ca
  openssl req -x509 -key "$PKI/ca.key" -days 365 -subj /CN=corrente-e2e -out "$PKI/ca.crt"
  new_key service-accounts
  openssl pkey -in "$PKI/service-accounts.key" -pubout -out "$PKI/service-accounts.pub"
  certificate apiserver /CN=kube-apiserver "$HOST_IP"
  certificate admin /O=system:masters/CN=admin "$HOST_IP"
  kubeconfig admin "client-certificate-data: $(base64 -w0 "$PKI/admin.crt"), client-key-data: $(base64 -w0 "$PKI/admin.key")"
  : >"$PKI/tokens.csv"
  token controller-manager system:kube-controller-manager ""
  token scheduler system:kube-scheduler ""
  token proxy system:kube-proxy ""
  for n in "${NODES[@]}"; do
    certificate "kubelet-$n" "/CN=node-$n" "$(node_ip "$n")"
    token "kubelet-$n" "system:node:node-$n" system:nodes
  done
}

# --- processes ------------------------------------------------------------------

start_control_plane() {
  start etcd etcd --data-dir "$DIR/etcd" --unsafe-no-fsync \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380
  start kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
    --advertise-address="$HOST_IP" --service-cluster-ip-range="$SERVICES" \
    --authorization-mode=Node,RBAC --token-auth-file="$PKI/tokens.csv" --client-ca-file="$PKI/ca.crt" \
    --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$PKI/service-accounts.pub" \
    --service-account-signing-key-file="$PKI/service-accounts.key" \
    --kubelet-client-certificate="$PKI/admin.crt" --kubelet-client-key="$PKI/admin.key" \
    --kubelet-preferred-address-types=InternalIP --allow-privileged
  wait_for 90 "kube-apiserver ($LOG/kube-apiserver.log)" kubectl get --raw /readyz
  # A node that is cut off is NotReady after 20 s rather than 50: the tests wait for it.
  start kube-controller-manager kube-controller-manager --kubeconfig="$PKI/controller-manager.conf" \
    --service-account-private-key-file="$PKI/service-accounts.key" --root-ca-file="$PKI/ca.crt" \
    --use-service-account-credentials --leader-elect=false --node-monitor-grace-period=20s
  start kube-scheduler kube-scheduler --kubeconfig="$PKI/scheduler.conf" --leader-elect=false
}

# What a cluster as people have it brings along: DNS and a default class of volumes.
add_ons() {
  local n
  kubectl apply -f "$E2E/stack/coredns.yaml" >/dev/null
  {
    cat <<'END'
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
END
    for n in "${NODES[@]}"; do node_volumes "$n"; done
  } | kubectl apply -f - >/dev/null
  # It appears a moment after the nodes are ready, and no pod can be made before.
  wait_for 60 "the default service account" kubectl get serviceaccount default
  kubectl -n kube-system rollout status deployment/coredns --timeout=120s >/dev/null ||
    fail "cluster DNS did not come up; see $LOG/pods-*/kube-system_coredns* and $LOG/kube-proxy-*.log"
}
