terraform {
  required_version = ">= 1.9"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 8.0"
    }
  }
  # Holds the store's password: readable by those who deploy, and by nobody else. `terraform init -backend-config=bucket=NAME`
  backend "gcs" {
    prefix = "darkroom/prod"
  }
}

provider "google" {
  project = var.project
  region  = var.region
}

module "darkroom" {
  source         = "../../modules/stack"
  project        = var.project
  region         = var.region
  domain         = var.domain
  host           = var.host
  images         = "${var.account}/darkroom"
  worker_version = var.worker_version
  admin_ranges   = var.admin_ranges
  ssh_ranges     = var.ssh_ranges
  deployer       = var.deployer
  nodes          = { machine_type = "e2-standard-4", min = 3, max = 8 }
  default_model  = "sdxl-base-1.0"
  redis          = { memory_gb = 5, highly_available = true }
  workers = {
    queue        = "gen.sdxl"
    machine_type = "g2-standard-8"
    gpu_type     = "nvidia-l4"
    gpus         = 1
    spot         = false
    min          = 2
    max          = 8
  }
}

output "helm_values" {
  value = module.darkroom.helm_values
}

output "observability_values" {
  value = module.darkroom.observability_values
}

output "cluster" {
  value = module.darkroom.cluster
}

output "worker_group" {
  value = module.darkroom.worker_group
}

output "ingress_address" {
  value = module.darkroom.ingress_address
}

output "certificates_account" {
  value = module.darkroom.certificates_account
}

output "name_servers" {
  value = module.darkroom.name_servers
}
