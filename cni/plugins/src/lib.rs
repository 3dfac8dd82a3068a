//! Built-in CNI plugins: bridge, host-local, portmap, firewall, loopback.
