// Upstream's tests of NetworkPolicy, unchanged, as one program: what test/e2e of Kubernetes does, but for the other
// thousands of tests. It takes the flags of the framework (--kubeconfig, --provider, …) and Ginkgo's (--ginkgo.focus,
// --ginkgo.json-report, …), and ends with status 1 if a spec fails.
package main

import (
	"flag"
	"os"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	// Its specs register themselves.
	_ "k8s.io/kubernetes/test/e2e/network/netpol"
	e2etestingmanifests "k8s.io/kubernetes/test/e2e/testing-manifests"
)

// outcome is what Ginkgo needs of testing.T: somebody to tell that a spec has failed.
type outcome struct{ failed bool }

func (o *outcome) Fail() { o.failed = true }

func main() {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	testfiles.AddFileSource(e2etestingmanifests.GetE2ETestingManifestsFS())
	framework.AfterReadingAllFlags(&framework.TestContext)
	gomega.RegisterFailHandler(framework.Fail)
	suite, reporter := framework.CreateGinkgoConfig()
	result := &outcome{}
	if !ginkgo.RunSpecs(result, "netpol", suite, reporter) || result.failed {
		os.Exit(1)
	}
}
