// A schema registry for the tests: franz-go's, in memory, with the API of Confluent's.
//
// It serves twice: plainly, and over TLS with basic authentication, with an authority of its own making whose
// certificate it leaves in the folder of its argument. Once both listen it prints one line of JSON with their
// addresses. It ends when its standard input does, so that a killed test leaves nothing behind.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/twmb/franz-go/pkg/sr/srfake"
)

const username, password = "corrente", "pass:word"

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func listen() net.Listener { return must(net.Listen("tcp", "127.0.0.1:0")) }

// The certificate is its own authority.
func certificate(folder string) tls.Certificate {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	authority := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "authority"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	ca := must(x509.CreateCertificate(rand.Reader, authority, authority, &key.PublicKey, key))
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca})
	if err := os.WriteFile(filepath.Join(folder, "ca.crt"), text, 0o644); err != nil {
		log.Fatal(err)
	}
	serverKey := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "registry"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:    authority.NotBefore,
		NotAfter:     authority.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	made := must(x509.CreateCertificate(rand.Reader, server, authority, &serverKey.PublicKey, key))
	return tls.Certificate{Certificate: [][]byte{made}, PrivateKey: serverKey}
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: registry FOLDER")
	}
	plain, secure := listen(), listen()
	config := &tls.Config{Certificates: []tls.Certificate{certificate(os.Args[1])}}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(username+":"+password))
	go func() { log.Fatal(http.Serve(plain, srfake.NewRegistry().Handler())) }()
	go func() {
		registry := srfake.NewRegistry(srfake.WithAuth(basic))
		log.Fatal(http.Serve(tls.NewListener(secure, config), registry.Handler()))
	}()
	ready := map[string]string{
		"http":  "http://" + plain.Addr().String(),
		"https": "https://" + secure.Addr().String(),
	}
	must(os.Stdout.Write(append(must(json.Marshal(ready)), '\n')))
	must(io.Copy(io.Discard, os.Stdin))
}
