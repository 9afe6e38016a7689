module netpol-agent/xtask/cluster-binaries/pause

go 1.26.0
