# The parts of one deployment, wired. envs/ has one root for each, with its sizes.

# A new project has hardly any of them on. They stay on when the deployment goes: others may use them.
resource "google_project_service" "this" {
  for_each = toset([
    "artifactregistry", "binaryauthorization", "cloudresourcemanager", "compute", "container", "dns", "iam", "iamcredentials", "logging",
    "monitoring", "iap", "oslogin", "redis", "secretmanager", "servicenetworking", "storage",
  ])

  project            = var.project
  service            = "${each.key}.googleapis.com"
  disable_on_destroy = false
}

# Where the group makes its machines.
data "google_compute_zones" "this" {
  project    = var.project
  region     = var.region
  depends_on = [google_project_service.this]
}

module "network" {
  source        = "../network"
  name          = var.name
  region        = var.region
  ranges        = var.ranges
  ssh_ranges    = var.ssh_ranges
  metrics_ports = module.workers.metrics_ports
  health_port   = module.workers.health_port
  depends_on    = [google_project_service.this]
}

module "cluster" {
  source              = "../cluster"
  project             = var.project
  name                = var.name
  region              = var.region
  network             = module.network.id
  subnetwork          = module.network.nodes
  node_account        = module.identity.nodes
  admin_ranges        = var.admin_ranges
  nodes               = var.nodes
  deletion_protection = var.protect
  depends_on          = [google_project_service.this]
}

module "identity" {
  source  = "../identity"
  project = var.project
  name    = var.name
  # From the cluster: Google has no such pool before the project's first one.
  workload_pool = module.cluster.workload_pool
  depends_on    = [google_project_service.this]
}

module "deployer" {
  source         = "../deployer"
  count          = var.deployer == "" ? 0 : 1
  project        = var.project
  name           = var.name
  member         = var.deployer
  worker_account = module.identity.worker
  depends_on     = [google_project_service.this]
}

module "bucket" {
  source        = "../bucket"
  name          = "${var.project}-${var.name}-pictures"
  location      = var.region
  result_ttl    = var.result_ttl
  origins       = ["https://${var.host}"]
  members       = module.identity.bucket_members
  force_destroy = !var.protect
  depends_on    = [google_project_service.this]
}

module "redis" {
  source           = "../redis"
  name             = var.name
  region           = var.region
  network          = module.network.managed
  memory_gb        = var.redis.memory_gb
  highly_available = var.redis.highly_available
  protect          = var.protect
  depends_on       = [google_project_service.this]
}

module "secrets" {
  source = "../secrets"
  name   = var.name
  secrets = { for name in concat(["broker-url", "redis-url", "ca", "redis-ca"], var.elasticsearch == "" ? [] : ["elasticsearch-api-key"],
    var.hub_token ? ["hub-token"] : []) :
  name => ["serviceAccount:${module.identity.emails["worker"]}"] }
  known  = ["redis-url", "redis-ca"]
  values = { redis-url = module.redis.url, redis-ca = module.redis.ca }

  depends_on = [google_project_service.this]
}

module "registry" {
  source  = "../registry"
  name    = "${var.name}-hub"
  region  = var.region
  readers = { nodes = module.identity.nodes, worker = module.identity.emails["worker"] }

  depends_on = [google_project_service.this]
}

module "dns" {
  source        = "../dns"
  name          = var.name
  region        = var.region
  network       = module.network.id
  subnetwork    = module.network.nodes
  workload_pool = module.cluster.workload_pool
  domain        = var.domain
  host          = var.host
  depends_on    = [google_project_service.this]
}

module "workers" {
  source         = "../gpu_worker"
  name           = "${var.name}-worker"
  region         = var.region
  subnetwork     = module.network.workers
  account        = module.identity.emails["worker"]
  image          = "${module.registry.host}/${var.images}-worker"
  worker_version = var.worker_version
  queue          = var.workers.queue
  secret_prefix  = var.name
  storage_url    = module.bucket.url
  result_ttl     = var.result_ttl
  settings       = var.settings
  catalogue      = var.catalogue
  hub_token      = var.hub_token
  machine_type   = var.workers.machine_type
  gpu_type       = var.workers.gpu_type
  gpus           = var.workers.gpus
  spot           = var.workers.spot
  machines       = { min = var.workers.min, max = var.workers.max }
  zones          = length(data.google_compute_zones.this.names)
  traces         = var.traces
  elasticsearch  = var.elasticsearch

  depends_on = [google_project_service.this]
}
