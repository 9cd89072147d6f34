output "cluster" {
  value = module.cluster.name
}

output "ranges" {
  value = module.network.ranges
}

output "worker_group" {
  value = module.workers.group
}

output "ingress_address" {
  value = module.dns.ingress_address
}

output "certificates_account" {
  value = module.dns.certificates_account
}

output "name_servers" {
  value = module.dns.name_servers
}

# What charts/observability needs to know of the GPU machines.
output "observability_values" {
  value = {
    prometheus = {
      gce = {
        project = var.project
        zones   = data.google_compute_zones.this.names
        ports   = module.workers.metrics_ports
        account = module.identity.prometheus
      }
      machineNetworks = [module.network.ranges.workers]
    }
  }
}

# What the chart needs to know: `terraform output -json helm_values` is a file for `helm upgrade -f` (JSON is YAML).
output "helm_values" {
  value = {
    image   = { registry = "${module.registry.host}/${split("/", var.images)[0]}" }
    storage = { url = module.bucket.url }
    settings = merge(var.settings, {
      RESULT_TTL            = var.result_ttl
      DEFAULT_MODEL_VERSION = var.default_model
    })
    catalogue = var.catalogue
    ingress   = { host = var.host }
    redis     = { external = { egress = [{ cidr = module.network.ranges.managed, port = 6378 }] } }
    rabbitmq = {
      internalLoadBalancer = {
        enabled      = true
        address      = module.dns.broker_address
        hostname     = ""
        sourceRanges = [module.network.ranges.workers]
      }
    }
    serviceAccounts = { for role, email in module.identity.emails : role => { "iam.gke.io/gcp-service-account" = email } }
  }
}
