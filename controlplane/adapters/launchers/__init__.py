"""Engines that run replicas: each implements `controlplane.replicas.ports.Launcher`."""
