# shellcheck shell=bash
# A node: a network namespace with a containerd, a kubelet and a kube-proxy of its own.
#
# The machine's firewall stays as it is, several nodes cost little, and a node can be
# cut off the network and put back.

BRIDGE=corrente0

node_ip() { echo "10.123.0.1$1"; }
node_dir() { echo "$DIR/node-$1"; }
node_socket() { echo "$DIR/node-$1/containerd.sock"; }
# By nsenter rather than `ip netns exec`, which mounts /sys anew and so hides the cgroups.
in_node() { nsenter --net="/run/netns/corrente-node-$1" "${@:2}"; }

make_bridge() { # an address that pods reach, and that does not depend on the machine's own network
  ip link add "$BRIDGE" address 02:00:0a:7b:00:01 type bridge # or it would take each new port's in turn
  ip addr add "$HOST_IP/24" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  sysctl -qw net.ipv4.ip_forward=1
}

node_network() { # node_network N
  local n=$1 ip
  ip=$(node_ip "$n")
  ip netns add "corrente-node-$n"
  ip link add "corrente-n$n" type veth peer name eth0 netns "corrente-node-$n"
  ip link set "corrente-n$n" master "$BRIDGE" up
  in_node "$n" ip link set lo up
  in_node "$n" ip addr add "$ip/24" dev eth0
  in_node "$n" ip link set eth0 up
  in_node "$n" ip route add default via "$HOST_IP"
  in_node "$n" sysctl -qw net.ipv4.ip_forward=1
  ip route replace "10.244.$n.0/24" via "$ip"
}

start_containerd() { # start_containerd N
  local n=$1 dir
  dir=$(node_dir "$n")
  mkdir -p "$dir/cni"
  cat >"$dir/containerd.toml" <<END
version = 2
root = "$dir/containerd"
state = "$dir/containerd-state"
[grpc]
  address = "$(node_socket "$n")"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true       # root may lack CAP_SYS_RESOURCE
  netns_mounts_under_state_dir = true # so that clearing this folder clears them
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
[plugins."io.containerd.internal.v1.opt"]
  path = "$dir/containerd-opt"
END
  cat >"$dir/cni/10-bridge.conflist" <<END
{"cniVersion":"1.0.0","name":"pods","plugins":[
 {"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"hairpinMode":true,
  "ipam":{"type":"host-local","ranges":[[{"subnet":"10.244.$n.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"$dir/cni/networks"}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
END
  start "containerd-$n" nsenter --net="/run/netns/corrente-node-$n" containerd -c "$dir/containerd.toml"
}

start_kubelet() { # start_kubelet N: two of them in one cgroup would remove each other's pods
  local n=$1 dir
  dir=$(node_dir "$n")
  cat >"$dir/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /corrente-node-$n
failSwapOn: false
oomScoreAdj: 0
containerRuntimeEndpoint: unix://$(node_socket "$n")
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
podCIDR: 10.244.$n.0/24
podLogsDir: $LOG/pods-$n
tlsCertFile: $PKI/kubelet-$n.crt
tlsPrivateKeyFile: $PKI/kubelet-$n.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: AlwaysAllow}
nodeStatusUpdateFrequency: 2s
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: "1%", imagefs.available: "1%"}
END
  start "kubelet-$n" nsenter --net="/run/netns/corrente-node-$n" "$(command -v kubelet)" --config="$dir/kubelet.yaml" \
    --kubeconfig="$PKI/kubelet-$n.conf" --root-dir="$dir/kubelet" --hostname-override="node-$n" --node-ip="$(node_ip "$n")"
  cat >"$dir/proxy.yaml" <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: 10.244.0.0/16
hostnameOverride: node-$n
oomScoreAdj: 0
clientConnection: {kubeconfig: $PKI/proxy.conf}
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s} # the machine's: not writable from a namespace
END
  start "kube-proxy-$n" nsenter --net="/run/netns/corrente-node-$n" "$(command -v kube-proxy)" --config="$dir/proxy.yaml"
}

node_volumes() { # node_volumes N: manifests of a few volumes, each used once
  local n=$1 i folder
  for i in 1 2 3 4 5 6; do
    folder=$(node_dir "$n")/volume-$i
    mkdir -p "$folder"
    chmod 777 "$folder"
    cat <<END
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: node-$n-$i}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Delete
  storageClassName: local
  local: {path: $folder}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node-$n]}]}]}}
END
  done
}

import_image() { # import_image TAR...: into every node
  local n tar jobs=() job
  for n in "${NODES[@]}"; do
    for tar in "$@"; do ctr -a "$(node_socket "$n")" -n k8s.io images import "$tar" >/dev/null || exit 1; done &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job"; done
}
