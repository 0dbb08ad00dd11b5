// What flannel's CNI plugin (flannel-io/cni-plugin) does, for the time that its
// chain takes: a program of ours in the same language, on the same libraries.
//
// ADD reads subnet.env, saves the delegate's configuration in a file of the
// container and has the plugin `bridge` carry it out, which executes
// `host-local`; DEL has what was saved taken back. CHECK does nothing.
//
//	{"type": "flannel", "subnetFile": FILE, "dataDir": FOLDER, "delegate": {...}, "ipam": {...}}
//
// To build it needs Debian's golang-go and golang-github-appc-cni-dev.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

type object = map[string]interface{}

type config struct {
	types.NetConf
	SubnetFile    string `json:"subnetFile"`
	DataDir       string `json:"dataDir"`
	Delegate      object `json:"delegate"`
	IPAM          object `json:"ipam"`
	RuntimeConfig object `json:"runtimeConfig"`
}

// A node's lease, as the agent's subnet.env tells it.
type lease struct {
	network, subnet *net.IPNet
	mtu             uint64
	masquerades     bool
}

func parse(text []byte) (*config, error) {
	found := &config{SubnetFile: "/run/flannel/subnet.env", DataDir: "/var/lib/cni/flannel"}
	if err := json.Unmarshal(text, found); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return found, nil
}

func readLease(path string) (lease, error) {
	var found lease
	file, err := os.Open(path)
	if err != nil {
		return found, err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); err == nil && lines.Scan(); {
		switch key, value, _ := strings.Cut(lines.Text(), "="); key {
		case "FLANNEL_NETWORK":
			_, found.network, err = net.ParseCIDR(value)
		case "FLANNEL_SUBNET":
			_, found.subnet, err = net.ParseCIDR(value)
		case "FLANNEL_MTU":
			found.mtu, err = strconv.ParseUint(value, 10, 32)
		case "FLANNEL_IPMASQ":
			found.masquerades = value == "true"
		}
	}
	if err == nil && (found.network == nil || found.subnet == nil || found.mtu == 0) {
		err = errors.New("network, subnet or MTU is missing")
	}
	if err != nil {
		return found, fmt.Errorf("%s: %w", path, err)
	}
	return found, nil
}

// Return what is given, and what is not given as it is by default.
func completed(given, defaults object) object {
	for key, value := range given {
		defaults[key] = value
	}
	return defaults
}

// Return the delegate's configuration: what ours says about it, and what the lease says.
func (c *config) delegateFor(of lease) object {
	filled := completed(c.Delegate, object{
		"type": "bridge", "isGateway": true, "mtu": of.mtu, "ipMasq": !of.masquerades,
	})
	filled["name"], filled["cniVersion"] = c.Name, c.CNIVersion
	ipam := completed(c.IPAM, object{"type": "host-local"})
	ipam["ranges"] = [][]object{{{"subnet": of.subnet.String()}}}
	ipam["routes"] = []types.Route{{Dst: *of.network}}
	filled["ipam"] = ipam
	if c.RuntimeConfig != nil {
		filled["runtimeConfig"] = c.RuntimeConfig
	}
	return filled
}

func add(args *skel.CmdArgs) error {
	found, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	of, err := readLease(found.SubnetFile)
	if err != nil {
		return err
	}
	filled := found.delegateFor(of)
	text, err := json.Marshal(filled)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(found.DataDir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(found.DataDir, args.ContainerID), text, 0o600); err != nil {
		return err
	}
	result, err := invoke.DelegateAdd(context.Background(), fmt.Sprint(filled["type"]), text, nil)
	if err != nil {
		return err
	}
	return result.Print()
}

func del(args *skel.CmdArgs) error {
	found, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	path := filepath.Join(found.DataDir, args.ContainerID)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	var saved types.NetConf
	if err := json.Unmarshal(text, &saved); err != nil {
		return err
	}
	if err := invoke.DelegateDel(context.Background(), saved.Type, text, nil); err != nil {
		return err
	}
	return os.Remove(path)
}

func check(*skel.CmdArgs) error { return nil }

func main() {
	skel.PluginMain(add, check, del, version.All, "flannel's chain, under measurement")
}
