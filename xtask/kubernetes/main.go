// The control plane that tests and the development cluster run: etcd, kube-apiserver and kubectl in one binary, which
// does what the name it is called by says, as busybox does. One link step instead of three, and most of the code is
// shared. xtask builds it, and keeps it outside the source tree under the hash of this folder.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	switch name := filepath.Base(os.Args[0]); name {
	case "etcd":
		// Parses its own arguments and ends the process by itself.
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "kubectl":
		// An exit status of kubectl means something (diff: 1 is "differs"), and CheckErr keeps it.
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			util.CheckErr(err)
		}
	default:
		fmt.Fprintf(os.Stderr, "%s: call this binary by the name of a component: etcd, kube-apiserver or kubectl\n", name)
		os.Exit(2)
	}
}
